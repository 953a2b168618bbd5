"""Where in the teacher the work is done: the scores by which every axis and layer is cut, for people to look at.

It is taken from what the prune stage gathered, and measured on held-out text for a teacher that was not cut. B:
sequences, S: positions, C: channels, L: layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.models import trunk_and_head
from foundry.engine.packed import Packed
from foundry.engine.prune.statistics import Statistics, column_squares
from foundry.spec.family import Family
from foundry.spec.weights import Role, Shape

NAME = "importance.json"
_TOKENS = 2048
_BINS = 48
_PLACES: dict[str, Role] = {"heads": "o", "ffn": "down", "hidden": "attention_norm"}


def gathered(statistics: Statistics, shape: Shape) -> dict[str, Any]:
    """The same figures as `importance`, from the calibration of the prune stage and on its text."""
    layers = statistics.layers
    squares = {
        "heads": [layer.attention.contribution_C.double().square() for layer in layers],
        "ffn": [] if shape.experts else [layer.ffn[0].contribution_C.double().square() for layer in layers],
        "hidden": [layer.streams["attention_norm"].score_H.double().square() for layer in layers],
    }
    return _told(statistics.tokens, statistics.distance_L, squares, shape)


@torch.no_grad()
def importance(
    model: PreTrainedModel, family: Family, shape: Shape, packed: Packed, context: RunContext
) -> dict[str, Any]:
    """One score for each layer, and for each layer those of its heads, and in falling order of its ffn and hidden.

    A channel's score is sqrt(sum x^2) |w|, w being its column of the projection that reads it, a head's the length of
    its channels' scores; that of a dimension of the stream is sqrt(sum_b (mean_s |x|)^2) behind a norm (arXiv
    2407.14679, section 2.2); a layer's is 1 - mean cos(input, output) (arXiv 2403.03853). An axis whose place the
    family does not have, such as the ffn of experts, is left out. Raises `Stopped`.
    """
    listening = _Listening(family, shape, context.device)
    rows = max(1, min(len(packed), _TOKENS // packed.sequence_tokens))
    trunk = trunk_and_head(model).trunk
    with listening.to(model):
        for start in range(rows):
            context.heed()
            batch = packed.batch(slice(start, start + 1), context.device)
            trunk(**batch.model_inputs())
            listening.tokens += batch.ids_BS.numel()
    return listening.found()


class _Listening:
    def __init__(self, family: Family, shape: Shape, device: torch.device) -> None:
        self._family, self._shape = family, shape
        self._squares: dict[str, list[Tensor | None]] = {axis: [None] * shape.layers for axis in _PLACES}
        self._writers: dict[tuple[str, int], Tensor] = {}
        self._cosines_L = torch.zeros(shape.layers, dtype=torch.float64, device=device)
        self.tokens = 0

    @contextmanager
    def to(self, model: nn.Module) -> Iterator[None]:
        handles = [handle for layer in range(self._shape.layers) for handle in self._hooks(model, layer)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, model: nn.Module, layer: int) -> Iterator[torch.utils.hooks.RemovableHandle]:
        for axis, role in _PLACES.items():
            weight = self._family.find(role)
            if weight is None or (axis == "ffn" and self._shape.experts):
                continue
            module = model.get_submodule(self._family.module_of(weight, layer))

            def hear_input(_: nn.Module, args: tuple[Tensor, ...], axis: str = axis) -> None:
                self._add(axis, layer, args[0].float().square().double().sum(dim=(0, 1)))

            def hear_norm(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, axis: str = axis) -> None:
                self._add(axis, layer, output.float().abs().mean(dim=1).double().square().sum(dim=0))

            if axis == "hidden":
                yield module.register_forward_hook(hear_norm)
            else:
                assert isinstance(module.weight, Tensor)
                self._writers[axis, layer] = module.weight if weight.input_axis else module.weight.T
                yield module.register_forward_pre_hook(hear_input)

        def hear_block(_: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            after = output if isinstance(output, Tensor) else output[0]
            self._cosines_L[layer] += torch.cosine_similarity(args[0].float(), after.float(), dim=-1).double().sum()

        yield model.get_submodule(self._family.layer_module.format(layer=layer)).register_forward_hook(hear_block)

    def _add(self, axis: str, layer: int, squares_C: Tensor) -> None:
        before_C = self._squares[axis][layer]
        self._squares[axis][layer] = squares_C if before_C is None else before_C + squares_C

    def found(self) -> dict[str, Any]:
        heard: dict[str, list[Tensor]] = {axis: [] for axis in self._squares}
        for axis, squares in self._squares.items():
            for layer, squares_C in enumerate(squares):
                if squares_C is not None:
                    writer_HC = self._writers.get((axis, layer))
                    heard[axis].append(squares_C if writer_HC is None else squares_C * column_squares(writer_HC))
        return _told(self.tokens, 1 - self._cosines_L / self.tokens, heard, self._shape)


def _told(tokens: int, distance_L: Tensor, squares: Mapping[str, Sequence[Tensor]], shape: Shape) -> dict[str, Any]:
    """An axis that was not heard in every layer is left out."""
    scores: dict[str, Any] = {"layers": distance_L.tolist()}
    for axis, heard in squares.items():
        if len(heard) < shape.layers:
            continue
        if axis == "heads":
            scores[axis] = [squares_C.view(shape.heads, -1).sum(dim=1).sqrt().tolist() for squares_C in heard]
        else:
            scores[axis] = [_bins(squares_C.sqrt()) for squares_C in heard]
    return {"tokens": tokens, "scores": scores}


def _bins(score_C: Tensor) -> list[float]:
    """The scores in falling order, as means of at most 48 stretches: which channel is which says nothing to people."""
    falling_C = score_C.sort(descending=True).values
    return [float(part.mean()) for part in falling_C.tensor_split(min(_BINS, len(falling_C)))]
