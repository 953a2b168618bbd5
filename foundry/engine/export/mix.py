"""Which types the tensors of a mixed GGUF get: more bits where the model's answers suffer most for each byte saved.

A class of tensors is a role of the family's table: the embedding, the value projections, ... For each class alone the
model is run with that class in 4 bits, and the divergence from its own answers is noted. Every further bit of a weight
quarters the squared error that rounding makes, and with it the divergence; small divergences add up. With these two
rules one measurement a class is enough: types are raised one step at a time, always where a byte buys most, while bytes
last. What that is worth stands in docs/decisions/0018-mixed-types.md.

T: tokens of a passage, V: vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import gguf
import torch
from gguf.quants import dequantize
from torch import nn
from transformers import PreTrainedModel

from foundry.engine.export.activations import Activations
from foundry.engine.export.quantize import quantize
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.formats import GgufType, bytes_of, gguf_type_of
from foundry.spec.weights import Role, Tensor

STEPS: tuple[GgufType, ...] = ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""What a class of tensors may get."""
_MOST_PROBABILITIES = 2**28
"""Of a vocabulary for every measured token, in float32: 1 GiB."""
_QUANTISATION = "mixed"


class Class(NamedTuple):
    """The tensors of one role."""

    cost_nats: float
    """Divergence a token with this class alone in the smallest type."""
    values: int
    sizes: Mapping[GgufType, int]
    """Bytes in each type, or in what the type falls back to."""

    def cost_in(self, kind: GgufType) -> float:
        """Divergence in another type: 6 dB for each bit of a weight."""
        more_bits = 8 * (self.sizes[kind] - self.sizes[STEPS[0]]) / self.values
        return self.cost_nats * float(4.0**-more_bits)


def choose_mix(
    model: PreTrainedModel, master: Checkpoint, activations: Activations, passages: Sequence[Sequence[int]],
    limit_bytes: int, enough_nats: float,
) -> dict[Role, GgufType]:  # fmt: skip
    """The types of a file that diverges by `enough_nats` a token, as predicted, or takes `limit_bytes` at most.

    The smallest of all where nothing more fits.

    Experts keep the types of q4_k_m, for transformers has them in one tensor, whose parts are not measured.
    """
    return mix_within(measure_classes(model, master, activations, passages), master, limit_bytes, enough_nats)


def mix_within(
    classes: Mapping[Role, Class], master: Checkpoint, limit_bytes: int, enough_nats: float
) -> dict[Role, GgufType]:
    """`choose_mix` for classes that have been measured."""
    tensors = master.family.tensors(master.shape, master.present)
    fixed = sum(
        bytes_of(math.prod(tensor.size), gguf_type_of(tensor, master.shape, _QUANTISATION))
        for tensor in tensors
        if not _is_chosen(tensor)
    )
    return raised(classes, limit_bytes - fixed, enough_nats)


def raised(classes: Mapping[Role, Class], limit_bytes: int, enough_nats: float = 0.0) -> dict[Role, GgufType]:
    """Start with the smallest type of every class and raise where a byte lowers the divergence most.

    Ends when nothing fits any more, or when the sum of all divergences is `enough_nats`.
    """
    chosen: dict[Role, GgufType] = dict.fromkeys(classes, STEPS[0])
    left = limit_bytes - sum(one.sizes[STEPS[0]] for one in classes.values())
    while sum(classes[role].cost_in(kind) for role, kind in chosen.items()) > enough_nats:
        offers: list[tuple[float, int, Role, GgufType]] = []
        for role, kind in chosen.items():
            one = classes[role]
            for more in STEPS[STEPS.index(kind) + 1 :]:
                extra = one.sizes[more] - one.sizes[kind]
                if 0 < extra <= left:
                    offers.append(((one.cost_in(kind) - one.cost_in(more)) / extra, extra, role, more))
        if not offers:
            break
        _, extra, role, kind = max(offers)
        chosen[role] = kind
        left -= extra
    return chosen


@torch.no_grad()
def measure_classes(
    model: PreTrainedModel, master: Checkpoint, activations: Activations, passages: Sequence[Sequence[int]]
) -> dict[Role, Class]:
    """What every class costs by itself. The model is as before when this returns."""
    asked = _some(passages, _MOST_PROBABILITIES // master.shape.vocab)
    expected = [_log_probabilities(model, passage) for passage in asked]
    tensors = sorted(
        filter(_is_chosen, master.family.tensors(master.shape, master.present)), key=lambda tensor: tensor.weight.role
    )
    found: dict[Role, Class] = {}
    for role, group in groupby(tensors, key=lambda tensor: tensor.weight.role):
        of_role = list(group)
        with _rounded(model, master, of_role, activations):
            cost = sum(_divergence(model, passage, was) for passage, was in zip(asked, expected, strict=True))
        found[role] = Class(
            cost_nats=cost / sum(map(len, asked)),
            values=sum(math.prod(tensor.size) for tensor in of_role),
            sizes={kind: sum(_bytes(tensor, master, kind) for tensor in of_role) for kind in STEPS},
        )
    return found


def _is_chosen(tensor: Tensor) -> bool:
    return len(tensor.size) == 2 and tensor.weight.role not in ("positions", "router") and not tensor.weight.per_expert


def _bytes(tensor: Tensor, master: Checkpoint, kind: GgufType) -> int:
    return bytes_of(math.prod(tensor.size), _type(tensor, master, kind))


def _type(tensor: Tensor, master: Checkpoint, kind: GgufType) -> GgufType:
    return gguf_type_of(tensor, master.shape, _QUANTISATION, {tensor.weight.role: kind})


def _some(passages: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    chosen: list[Sequence[int]] = []
    for passage in passages:
        if sum(map(len, chosen)) < tokens:
            chosen.append(passage)
    return chosen


@contextmanager
def _rounded(
    model: PreTrainedModel, master: Checkpoint, tensors: Sequence[Tensor], activations: Activations
) -> Iterator[None]:
    """The model with some of its weights as they come back from the smallest type."""
    weights = [_weight(model, master, tensor) for tensor in tensors]
    before = [weight.data.cpu() for weight in weights]
    try:
        for tensor, weight in zip(tensors, weights, strict=True):
            heard = activations.get(tensor.name)
            transposed = tensor.weight.input_axis == 0
            value = weight.data.cpu()
            kind = _type(tensor, master, STEPS[0])
            rows = quantize(value.T if transposed else value, kind, None if heard is None else heard.mean_C)
            back = torch.from_numpy(dequantize(rows, gguf.GGMLQuantizationType[kind]).copy())
            weight.data = (back.T if transposed else back).contiguous().to(weight.device, weight.dtype)
        yield
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.data = value.to(weight.device)


def _weight(model: PreTrainedModel, master: Checkpoint, tensor: Tensor) -> nn.Parameter:
    if tensor.weight.role == "head":
        module = model.get_output_embeddings()
    else:
        module = model.get_submodule(master.family.module_of(tensor.weight, tensor.layer))
    found = module.weight
    assert isinstance(found, nn.Parameter)
    return found


def _log_probabilities(model: PreTrainedModel, passage: Sequence[int]) -> torch.Tensor:
    logits_TV = model(input_ids=torch.tensor([list(passage)], device=model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits_TV.float(), dim=-1).cpu()


def _divergence(model: PreTrainedModel, passage: Sequence[int], expected_TV: torch.Tensor) -> float:
    """KL from what the model said before, in nats, summed over the tokens."""
    return float((expected_TV.exp() * (expected_TV - _log_probabilities(model, passage))).sum())
