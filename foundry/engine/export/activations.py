"""How large the inputs of every matrix are on text of the job: what llama.cpp calls an importance matrix.

A k-quant chooses the scales of its blocks so that the squared error of the weights is small. With the mean square of
each input column beside the weights it makes small what counts instead: the squared error of the outputs.

T: tokens, C: columns of a matrix (its inputs), H: hidden, F: ffn, K: experts of a token.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.intake.checkpoint import Checkpoint
from foundry.spec.formats import Mix
from foundry.spec.weights import Weight


class Heard(NamedTuple):
    """What one matrix was given."""

    squares_C: Tensor
    """Sum of the squares of each column, float32."""
    tokens: int

    @property
    def mean_C(self) -> Tensor:
        """Mean square of each column."""
        return self.squares_C / self.tokens


Activations = Mapping[str, Heard]
"""By the name of the weight in the checkpoint. A matrix that no token reached, such as a rare expert's, is absent."""


class Tuning(NamedTuple):
    """What was measured of a model before it is quantised."""

    activations: Activations
    """What errors are weighed with."""
    mix: Mix
    """The types of a mixed file."""


UNTUNED = Tuning({}, {})
"""Nothing was measured: every quantisation goes by its own rule."""


@torch.no_grad()
def hear(model: PreTrainedModel, checkpoint: Checkpoint, passages: Iterable[Sequence[int]]) -> Activations:
    """Run the passages through a model and note what its matrices are given."""
    sums = _Sums()
    with _listening(model, checkpoint, sums):
        for passage in passages:
            model(input_ids=torch.tensor([list(passage)], device=model.device), use_cache=False)
    return {name: Heard(squares_C.float().cpu(), sums.tokens[name]) for name, squares_C in sums.squares.items()}


class _Sums:
    """Sums of squares by the name of a weight."""

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}

    def add(self, names: Iterable[str], x: Tensor) -> None:
        flat_TC = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(flat_TC):
            return
        squares_C = flat_TC.square().sum(dim=0).double()
        for name in names:
            self.squares[name] = self.squares.get(name, 0) + squares_C
            self.tokens[name] = self.tokens.get(name, 0) + len(flat_TC)


@contextmanager
def _listening(model: PreTrainedModel, checkpoint: Checkpoint, sums: _Sums) -> Iterator[None]:
    handles = list(_hooks(model, checkpoint, sums))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(model: PreTrainedModel, checkpoint: Checkpoint, sums: _Sums) -> Iterator[torch.utils.hooks.RemovableHandle]:
    family, shape = checkpoint.family, checkpoint.shape
    modules = dict(model.named_modules())
    experts: dict[str, list[Weight]] = {}
    for tensor in family.tensors(shape, checkpoint.present):
        weight = tensor.weight
        if weight.input_axis is None or weight.role in ("head", "router"):
            continue
        name = family.module_of(weight, tensor.layer)
        if weight.per_expert:
            if tensor.expert == 0:
                experts.setdefault(name.split(".{expert}")[0], []).append(weight)
            continue
        yield modules[name].register_forward_pre_hook(partial(_hear_input, sums, (tensor.name,)))
    for name, weights in experts.items():
        layer = next(int(part) for part in name.split(".") if part.isdigit())
        hook = partial(_hear_experts, sums, layer, tuple(weights), shape.experts)
        yield modules[name].register_forward_pre_hook(hook)
    # The embedding is the head where both are one matrix: there it multiplies.
    head = family.embedding if shape.tied else family.head
    yield model.get_output_embeddings().register_forward_pre_hook(partial(_hear_input, sums, (head,)))


def _hear_input(sums: _Sums, names: tuple[str, ...], _: nn.Module, args: tuple[Any, ...]) -> None:
    sums.add(names, args[0])


def _hear_experts(
    sums: _Sums, layer: int, weights: tuple[Weight, ...], count: int, experts: Any, args: tuple[Any, ...]
) -> None:
    """transformers keeps the experts of a layer in two tensors and gives no module for one of them.

    The inputs are tokens [T, H], the numbers of each token's experts [T, K] and the router's weights [T, K].
    """
    x_TH, expert_TK = args[0], args[1]
    for number in range(count):
        given_NH = x_TH[torch.where(expert_TK == number)[0]]
        gate_NF, up_NF = nn.functional.linear(given_NH, experts.gate_up_proj[number]).chunk(2, dim=-1)
        for weight in weights:
            inside = experts.act_fn(gate_NF) * up_NF if weight.role == "down" else given_NH
            sums.add((weight.name.format(layer=layer, expert=number),), inside)
