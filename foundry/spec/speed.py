"""How fast a device can run a shape, by arithmetic: bytes over bandwidth, operations over compute.

Both are bounds that a runtime comes near and does not reach; what was measured stands in a variant's metrics.
"""

from typing import Annotated

from pydantic import Field

from foundry.spec.adapter import adapter_bytes, adapter_values
from foundry.spec.family import Family
from foundry.spec.formats import bytes_read_per_token, parse_format
from foundry.spec.record import Count, Record
from foundry.spec.weights import Shape

PROMPT_TOKENS = 512
"""The prompt whose time to the first token is stated."""


Bandwidth = Annotated[
    Count | None,
    Field(description="Bytes that it reads from its memory in a second: bounds how fast it writes tokens."),
]
Compute = Annotated[
    Count | None,
    Field(
        description="Operations in a second of the unit that the runtime computes with, in the type that it multiplies "
        "in; a multiply-add is two."
    ),
]
LeastSpeed = Annotated[
    Count | None, Field(description="Tokens written in a second; slower than this is of no use on the device.")
]


class Speed(Record):
    """What bounds the speed of a device; None is not known."""

    memory_bandwidth_bytes_per_s: Bandwidth = None
    compute_ops_per_s: Compute = None
    minimum_tokens_per_s: LeastSpeed = None


def decode_tokens_per_s(
    speed: Speed, form: str, context_tokens: int, family: Family, shape: Shape, present: frozenset[str] = frozenset(),
    adapter_rank: int = 0,
) -> float | None:  # fmt: skip
    """Every token reads its weights (of the experts the active ones), those of a LoRA adapter of this rank beside them,
    and the keys and values of a full context."""
    if speed.memory_bandwidth_bytes_per_s is None:
        return None
    read_bytes = bytes_read_per_token(family, shape, parse_format(form), present)
    read_bytes += adapter_bytes(family, shape, adapter_rank, present)
    return speed.memory_bandwidth_bytes_per_s / (read_bytes + shape.kv_cache_bytes(context_tokens))


def first_token_s(
    speed: Speed, form: str, family: Family, shape: Shape, present: frozenset[str] = frozenset(),
    prompt_tokens: int = PROMPT_TOKENS, adapter_rank: int = 0,
) -> float | None:  # fmt: skip
    """Seconds from a prompt to its first token.

    Two operations for each weight and token, but the head for the last token alone; attention adds 4 x layers x heads x
    head_dim for each pair of tokens, half of which are masked. The weights have to be read once in any case.
    """
    if speed.compute_ops_per_s is None:
        return None
    active = shape.model_copy(update={"experts": min(shape.experts, shape.experts_per_token)})
    head = shape.vocab * shape.hidden
    once = head if shape.tied else 2 * head  # the embedding is looked up, not multiplied
    of_each_token = 2 * (family.parameter_count(active, present) - once - shape.positions * shape.hidden)
    of_each_token += 2 * adapter_values(family, shape, adapter_rank, present)
    attention = 2 * shape.layers * shape.heads * shape.head_dim * prompt_tokens**2
    compute_s = (of_each_token * prompt_tokens + attention + 2 * head) / speed.compute_ops_per_s
    if speed.memory_bandwidth_bytes_per_s is None:
        return compute_s
    read_bytes = bytes_read_per_token(family, shape, parse_format(form), present)
    read_bytes += adapter_bytes(family, shape, adapter_rank, present)
    return max(compute_s, read_bytes / speed.memory_bandwidth_bytes_per_s)
