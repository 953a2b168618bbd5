"""What a LoRA adapter adds beside the weights: two narrow factors for every projection of a layer."""

from collections.abc import Callable

from foundry.spec.family import Family
from foundry.spec.formats import parse_format
from foundry.spec.weights import Role, Shape, Weight

ADAPTED_ROLES: frozenset[Role] = frozenset({"q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down"})
ADAPTER_FOLDER = "adapter"
"""Of a variant's folder, as PEFT saves it; there only where the adapter is not in the weights."""
ADAPTER_WEIGHTS = f"{ADAPTER_FOLDER}/adapter_model.safetensors"
ADAPTER_GGUF = f"{ADAPTER_FOLDER}/adapter.gguf"
"""The same adapter for llama.cpp, to be used with any GGUF of the folder."""
_VALUE_BYTES = 4
"""Factors are kept in float32 by PEFT's file and by llama.cpp's."""
_FACTOR_HEADER_BYTES = 160
"""Name, type and size of one factor in either file, from above."""


def takes_adapter(form: str) -> bool:
    """Whether the runtime of a format loads an adapter beside the weights: every one but ONNX Runtime does."""
    return adapter_file(form) is not None


def adapter_file(form: str) -> str | None:
    """What the runtime of a format loads beside the weights, in a variant's folder; None where it takes no adapter."""
    return {"gguf": ADAPTER_GGUF, "safetensors": ADAPTER_WEIGHTS}.get(parse_format(form).container)


def is_adapted(weight: Weight) -> bool:
    """Whether an adapter has factors for a table row.

    Experts are left as they are: transformers keeps those of a layer in one tensor, which is no module to adapt.
    """
    return weight.role in ADAPTED_ROLES and not weight.is_bias and not weight.per_expert


def factor_values(weight: Weight, size: tuple[int, ...], rank: int) -> int:
    """Numbers in both factors of one tensor of a row, [rank, in] and [out, rank]; 0 where it is not adapted."""
    return rank * sum(size) if is_adapted(weight) else 0


def factor_bytes(weight: Weight, size: tuple[int, ...], rank: int) -> int:
    """Bytes of both factors of one tensor of a row in the adapter's file, from above."""
    values = factor_values(weight, size, rank)
    return _VALUE_BYTES * values + 2 * _FACTOR_HEADER_BYTES if values else 0


def adapter_values(family: Family, shape: Shape, rank: int, present: frozenset[str] = frozenset()) -> int:
    """Numbers in a whole adapter."""
    return _over_weights(factor_values, family, shape, rank, present)


def adapter_bytes(family: Family, shape: Shape, rank: int, present: frozenset[str] = frozenset()) -> int:
    """Bytes of an adapter's file, from above."""
    return _over_weights(factor_bytes, family, shape, rank, present)


def _over_weights(
    of_tensor: Callable[[Weight, tuple[int, ...], int], int], family: Family, shape: Shape, rank: int,
    present: frozenset[str],
) -> int:  # fmt: skip
    """The sum of a figure over every tensor of a model."""
    return sum(
        of_tensor(weight, tuple(map(shape.length, weight.dims)), rank) * weight.count(shape)
        for weight in family.weights
        if family.has(weight, shape, present)
    )
