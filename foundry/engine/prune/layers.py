"""Runs one layer of a causal model at a time, on a residual stream that somebody else keeps.

A layer needs more than the stream: masks, rotary angles, what its layer type asks for. The model itself computes these
on the way to the layer, so it is asked to go there while its other layers let everything pass.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.models import trunk_and_head
from foundry.spec.family import Family

_Inputs = dict[str, Any]


class Layers:
    """The layers of a model, each to be called alone."""

    def __init__(self, model: PreTrainedModel, family: Family, count: int) -> None:
        self._trunk = trunk_and_head(model).trunk
        self._layers = [model.get_submodule(family.layer_module.format(layer=layer)) for layer in range(count)]

    def __getitem__(self, layer: int) -> nn.Module:
        module: nn.Module = self._layers[layer]
        return module

    def stream(self, inputs: _Inputs) -> Tensor:
        """What goes into the first layer [B, S, H]: embeddings as the model scales them, positions added."""
        stream_BSH: Tensor = self._arguments(0, inputs)[0][0]
        return stream_BSH

    def run(self, layer: int, inputs: _Inputs, stream_BSH: Tensor) -> Tensor:
        """A layer's output [B, S, H] for this stream. `inputs` are the model's own, for masks and positions."""
        args, kwargs = self._arguments(layer, inputs)
        output = self._layers[layer](stream_BSH, *args[1:], **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    def _arguments(self, layer: int, inputs: _Inputs) -> tuple[tuple[Any, ...], _Inputs]:
        """What the model hands to a layer; the layers before it let the stream pass, those behind are not reached."""
        with self._passing(layer):
            try:
                self._trunk(**inputs)
            except _Reached as reached:
                return reached.args_, reached.kwargs
        raise AssertionError("the model has not called its layer")

    @contextmanager
    def only(self, kept: Collection[int]) -> Iterator[None]:
        """Within this, the whole model runs as if it had no other layers than these."""
        skipped = [module for number, module in enumerate(self._layers) if number not in kept]
        for module in skipped:
            module.forward = _let_pass
        try:
            yield
        finally:
            for module in skipped:
                del module.forward

    @contextmanager
    def _passing(self, layer: int) -> Iterator[None]:
        def stop(*args: Any, **kwargs: Any) -> None:
            raise _Reached(args, kwargs)

        reached = self._layers[layer]
        with self.only(range(layer, len(self._layers))):
            reached.forward = stop
            try:
                yield
            finally:
                del reached.forward


def _let_pass(stream: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stands in for a layer's forward: an attribute of the instance hides the class's until it is deleted."""
    return stream


class _Reached(Exception):
    """Carries what the layer was called with out of the model."""

    def __init__(self, args: tuple[Any, ...], kwargs: _Inputs) -> None:
        super().__init__()
        self.args_, self.kwargs = args, kwargs
