"""A causal model of which one layer at a time is in memory, run on residual streams that somebody else keeps.

The model is transformers' own class on the meta device: it knows its shape and computes masks and rotary angles, and
has no weights. A layer's weights come from a source, a checkpoint or a slicer, when that layer is run, and go
afterwards. So what is pruned may be larger than memory, and a teacher that fits takes the same way.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from foundry.engine.allocator import return_freed_memory
from foundry.engine.attention import attend_within_documents
from foundry.engine.models import attention_of, trunk_and_head
from foundry.engine.products import scaled_for_head
from foundry.spec.family import Family
from foundry.spec.weights import WRITERS, Shape
from foundry.spec.weights import Tensor as TensorPlace

Source = Callable[[TensorPlace], Tensor]
"""Gives the weight at a place of the model."""
_Inputs = dict[str, Any]
_LARGE_LAYER = 2**24
"""Weights of a layer from which on its memory counts for more than the time that it takes to ask for it anew."""


class End(NamedTuple):
    """What comes behind the last layer."""

    norm: nn.Module
    hidden: Callable[[Tensor], Tensor]
    """The stream behind the last layer to what the head reads: the norm, and Granite's division."""
    head_VH: Tensor
    softcap: float | None


class StreamedModel:
    """The layers of a model, each loaded, run and forgotten."""

    def __init__(
        self, config: Mapping[str, Any], family: Family, shape: Shape, present: frozenset[str], source: Source, *,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.family, self.shape, self.device, self.dtype = family, shape, device, dtype
        self._source = source
        self._model = _without_weights(config, device, dtype)
        self._trunk = trunk_and_head(self._model).trunk
        self._let_pass = _let_pass_in_a_tuple if _takes_tuples(self._trunk) else _let_pass
        self._layers = [self._module(family.layer_module.format(layer=layer)) for layer in range(shape.layers)]
        self._places: dict[int | None, list[TensorPlace]] = {}
        # Writers first: to refit one takes more memory than any other weight, and then nothing else is there yet.
        for place in sorted(family.tensors(shape, present), key=lambda place: place.weight.role not in WRITERS):
            self._places.setdefault(place.layer if place.weight.per_layer else None, []).append(place)
        # Positions are added on the way to every layer, and are small.
        self._fill([place for place in self._places[None] if place.weight.role == "positions"], dtype)

    def module(self, name: str) -> nn.Module:
        """A module by the name that the class gives it."""
        return self._module(name)

    def places(self, layer: int) -> list[TensorPlace]:
        """The weights of a layer."""
        return self._places[layer]

    @contextmanager
    def layer(self, layer: int, dtype: torch.dtype | None = None) -> Iterator[nn.Module]:
        """A layer with its weights, for `run`; without them again afterwards."""
        with self._filled(self._places[layer], dtype or self.dtype):
            yield self._layers[layer]

    def run(self, layer: int, inputs: _Inputs, stream_BSH: Tensor) -> Tensor:
        """A loaded layer's output [B, S, H] for this stream. `inputs` are the model's own, for positions."""
        embedded = {key: value for key, value in inputs.items() if key != "input_ids"}
        args, kwargs = self._arguments(layer, {**embedded, "inputs_embeds": stream_BSH})
        output = self._layers[layer](stream_BSH, *args[1:], **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    @contextmanager
    def beginning(self) -> Iterator[Callable[[_Inputs], Tensor]]:
        """A function from the model's inputs to what goes into the first layer [B, S, H].

        Embeddings come as the model scales them, with positions added.
        """
        with self._filled([p for p in self._places[None] if p.weight.role == "embedding"], self.dtype):
            yield lambda inputs: self._arguments(0, inputs)[0][0]

    @contextmanager
    def end(self, *, head: bool = True) -> Iterator[End]:
        """The final norm and the head, whose weights stay out of memory where nobody needs them."""
        norm = [place for place in self._places[None] if place.weight.role == "final_norm"]
        module = self._model.get_output_embeddings()
        assert isinstance(module, nn.Linear)
        without = module._parameters["weight"]
        with self._filled(norm, self.dtype):
            try:
                if head:
                    module._parameters["weight"] = self._parameter(self.head(), self.dtype)
                final = self._module(self.family.module_of(self.family.row("final_norm"), 0))
                _, head_VH, softcap = trunk_and_head(self._model)
                yield End(final, lambda stream: scaled_for_head(final(stream), self._trunk), head_VH, softcap)
            finally:
                module._parameters["weight"] = without

    def return_memory(self) -> None:
        """Between two parts of the work: what is free goes back, where layers are so large that it counts."""
        if sum(math.prod(place.size) for place in self._places[0]) >= _LARGE_LAYER:
            return_freed_memory()

    @property
    def head_place(self) -> TensorPlace:
        """The matrix that gives logits; of a tied model, the embedding."""
        name = self.family.embedding if self.shape.tied else self.family.head
        return next(place for place in self._places[None] if place.name == name)

    def head(self) -> Tensor:
        """Its weights [V, H], which stay with whoever asks."""
        return self._source(self.head_place).to(self.device, self.dtype)

    def stored(self, layer: int) -> Iterator[tuple[TensorPlace, Tensor]]:
        """A loaded layer's weights under the names that a checkpoint has for them."""
        for place in self._places[layer]:
            name, index = self._home(place)
            yield place, self._model.get_parameter(name)[index]

    def _module(self, name: str) -> nn.Module:
        module: nn.Module = self._model.get_submodule(name)
        return module

    def _home(self, place: TensorPlace) -> tuple[str, Any]:
        """The parameter that holds a weight, and where in it.

        transformers keeps the experts of a layer in two stacks: [E, 2F, H], the gate's rows first, and [E, H, F].
        """
        weight = place.weight
        name = self.family.module_of(weight, place.layer)
        if not weight.per_expert:
            return f"{name}.{'bias' if weight.is_bias else 'weight'}", ...
        experts = name.split(".{expert}")[0]
        if weight.role == "down":
            return f"{experts}.down_proj", place.expert
        rows = slice(0, self.shape.ffn) if weight.role == "gate" else slice(self.shape.ffn, None)
        return f"{experts}.gate_up_proj", (place.expert, rows)

    def _fill(self, places: Collection[TensorPlace], dtype: torch.dtype) -> dict[str, nn.Parameter]:
        """Give parameters their weights; return what stood there before, by name."""
        before: dict[str, nn.Parameter] = {}
        self.return_memory()
        for place in places:
            name, index = self._home(place)
            if name not in before:
                before[name] = self._model.get_parameter(name)
            if index is ...:
                self._put(name, self._parameter(self._source(place), dtype))
                self.return_memory()  # a source may have made much more on its way to this
                continue
            stack = self._model.get_parameter(name)
            if stack.is_meta:
                stack = self._parameter(torch.empty(stack.shape, dtype=dtype, device=self.device), dtype)
                self._put(name, stack)
            stack.data[index] = self._source(place).to(self.device, dtype)
        return before

    def _parameter(self, value: Tensor, dtype: torch.dtype) -> nn.Parameter:
        """A copy, which may be written to."""
        return nn.Parameter(value.detach().to(self.device, dtype, copy=True), requires_grad=False)

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        module, _, key = name.rpartition(".")
        self._module(module)._parameters[key] = parameter

    @contextmanager
    def _filled(self, places: Collection[TensorPlace], dtype: torch.dtype) -> Iterator[None]:
        before = self._fill(places, dtype)
        try:
            yield
        finally:
            for name, parameter in before.items():
                self._put(name, parameter)

    def _arguments(self, layer: int, inputs: _Inputs) -> tuple[tuple[Any, ...], _Inputs]:
        """What the model hands to a layer; the layers before it let the stream pass, those behind are not reached."""
        with self._passing(layer):
            try:
                self._trunk(**inputs)
            except _Reached as reached:
                return reached.args_, reached.kwargs
        raise AssertionError("the model has not called its layer")

    @contextmanager
    def _passing(self, layer: int) -> Iterator[None]:
        """An attribute of an instance hides the class's `forward` until it is deleted."""

        def stop(*args: Any, **kwargs: Any) -> None:
            raise _Reached(args, kwargs)

        hidden = self._layers[: layer + 1]
        for module in hidden[:-1]:
            module.forward = self._let_pass
        hidden[-1].forward = stop
        try:
            yield
        finally:
            for module in hidden:
                del module.forward


def _without_weights(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The class on the meta device, but for its buffers, which no checkpoint holds."""
    made = AutoConfig.for_model(**deepcopy(dict(config)))  # it writes into the rope settings
    with init_empty_weights(include_buffers=False):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]._from_config(
            made, dtype=dtype, attn_implementation=attention_of(made)
        )
    for module in model.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.to(device)
    attend_within_documents(model, dtype, device)
    return model.eval().requires_grad_(False)


def _takes_tuples(trunk: nn.Module) -> bool:
    """Whether a model takes the first of what its layers give: Nemotron and StableLM do in transformers 5.3."""
    return "layer_outputs[0]" in inspect.getsource(type(trunk).forward)


def _let_pass(stream: Tensor, *_: Any, **__: Any) -> Tensor:
    return stream


def _let_pass_in_a_tuple(stream: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    return (stream,)


class _Reached(Exception):
    """Carries what the layer was called with out of the model."""

    def __init__(self, args: tuple[Any, ...], kwargs: _Inputs) -> None:
        super().__init__()
        self.args_, self.kwargs = args, kwargs
