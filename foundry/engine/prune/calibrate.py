"""One forward pass over the calibration text that gathers what every axis and every target needs.

Letters of shapes: B sequences, S positions, T tokens, H hidden, F ffn, C channels of a projection's input, E experts,
K experts of a token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import Packed
from foundry.engine.models import trunk_and_head
from foundry.errors import DamagedCheckpoint
from foundry.spec.family import ATTENTION_READERS, FFN_READERS, Family, Role, Shape
from foundry.spec.lifecycle import Progress


class Channels:
    """What the input of one output projection says about its channels.

    `score_C` is the Minitron statistic sqrt(sum_b (mean_s |x|)^2): mean over the sequence, L2 over the batch (arXiv
    2407.14679, section 2.2). `gram_CC` is sum x x^T over all positions, for the least-squares refit.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self._squares_C = torch.zeros(channels, dtype=torch.float64, device=device)
        self.gram_CC = torch.zeros(channels, channels, dtype=torch.float32, device=device)

    def add(self, x_BSC: Tensor) -> None:
        x = x_BSC.float()
        self._squares_C += x.abs().mean(dim=1).double().square().sum(dim=0)
        flat = x.flatten(0, 1)
        self.gram_CC.addmm_(flat.T, flat)

    def add_routed(self, x_TC: Tensor, weights_T: Tensor) -> None:
        """The tokens that a router sent to an expert; each counts as the router weighs it."""
        x = x_TC.float() * weights_T.float()[:, None]
        self._squares_C += x.double().square().sum(dim=0)
        self.gram_CC.addmm_(x.T, x)

    @property
    def score_C(self) -> Tensor:
        return self._squares_C.sqrt()


class Stream:
    """One place of the residual stream: the covariance there, and the Minitron statistic of what its readers see."""

    def __init__(self, hidden: int, device: torch.device, *, centred: bool) -> None:
        self._squares_H = torch.zeros(hidden, dtype=torch.float64, device=device)
        self._centred = centred
        self.covariance_HH = torch.zeros(hidden, hidden, dtype=torch.float32, device=device)

    def add(self, x_BSH: Tensor, read_BSH: Tensor) -> None:
        """`x` is the stream, `read` what a norm makes of it. A layer norm sees `x` without its mean."""
        self._squares_H += read_BSH.float().abs().mean(dim=1).double().square().sum(dim=0)
        flat = x_BSH.float().flatten(0, 1)
        if self._centred:
            flat = flat - flat.mean(dim=1, keepdim=True)
        self.covariance_HH.addmm_(flat.T, flat)

    @property
    def score_H(self) -> Tensor:
        return self._squares_H.sqrt()


@dataclass(kw_only=True)
class LayerStatistics:
    """What calibration found in one layer."""

    attention: Channels
    ffn: list[Channels]
    """One of each expert; one alone in a dense model."""
    streams: dict[Role, Stream]
    """By the norm that stands there; `attention_norm` and `ffn_norm` also where the readers have no norm."""
    expert_score_E: Tensor
    """Mean over tokens of the length of each expert's weighted output (Minitron for mixtures of experts)."""
    cosine_sum: Tensor
    """Of the cosines between the layer's input and output."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """All that calibration found. Lists run over the teacher's layers."""

    layers: list[LayerStatistics]
    final_norm: Stream
    tokens: int

    @property
    def distance_L(self) -> Tensor:
        """1 - mean cos(input, output) of each layer: its influence on the stream (ShortGPT, arXiv 2403.03853)."""
        return 1 - torch.stack([layer.cosine_sum for layer in self.layers]) / self.tokens

    @property
    def hidden_score_H(self) -> Tensor:
        """The readers' scores summed over layers; the final norm feeds no projection and does not count (Minitron)."""
        return torch.stack([stream.score_H for stream in self._read_streams()]).sum(dim=0)

    def covariances(self) -> list[Tensor]:
        """Of every place that something reads, the final norm's included."""
        return [stream.covariance_HH for stream in (*self._read_streams(), self.final_norm)]

    def _read_streams(self) -> list[Stream]:
        return [layer.streams[role] for layer in self.layers for role in ("attention_norm", "ffn_norm")]


def bytes_needed(family: Family, shape: Shape) -> int:
    """Memory that the statistics take: one square matrix a projection and a place of the stream."""
    attention = shape.heads * shape.head_dim
    places = 2 + sum(family.find(role) is not None for role in _POST_NORMS)
    per_layer = max(1, shape.experts) * shape.ffn**2 + attention**2 + places * shape.hidden**2
    return 4 * (shape.layers * per_layer + shape.hidden**2)


_POST_NORMS: tuple[Role, ...] = ("attention_post_norm", "ffn_post_norm")


def calibrate(
    teacher: PreTrainedModel, family: Family, shape: Shape, packed: Packed, context: RunContext, *, rows: int = 8
) -> Statistics:
    """Run the teacher over the text and listen at every projection and norm.

    Raises `DamagedCheckpoint` when an activation is not a number, `Stopped` when asked to.
    """
    gathered = _Gathering(family, shape, context.device)
    trunk = trunk_and_head(teacher).trunk
    steps = -(-len(packed) // rows)
    with gathered.listening(teacher), torch.no_grad():
        for step, batch in enumerate(packed.batches(rows, context.device), start=1):
            if context.should_stop():
                raise Stopped
            trunk(**batch.model_inputs())
            context.progress(Progress(stage="prune", step=step, steps=steps))
    return gathered.statistics(packed.ids_NS.numel())


@dataclass
class _Gathering:
    """The accumulators and the hooks that fill them."""

    family: Family
    shape: Shape
    device: torch.device
    layers: list[LayerStatistics] = field(init=False)
    final_norm: Stream = field(init=False)

    def __post_init__(self) -> None:
        self.layers = [self._new_layer() for _ in range(self.shape.layers)]
        self.final_norm = self._new_stream()

    def _new_stream(self) -> Stream:
        return Stream(self.shape.hidden, self.device, centred=self.family.norm == "layer")

    def _new_layer(self) -> LayerStatistics:
        shape, device = self.shape, self.device
        places: list[Role] = ["attention_norm", "ffn_norm", *(r for r in _POST_NORMS if self.family.find(r))]
        return LayerStatistics(
            attention=Channels(shape.heads * shape.head_dim, device),
            ffn=[Channels(shape.ffn, device) for _ in range(max(1, shape.experts))],
            streams={role: self._new_stream() for role in places},
            expert_score_E=torch.zeros(shape.experts, dtype=torch.float64, device=device),
            cosine_sum=torch.zeros((), dtype=torch.float64, device=device),
        )

    @contextmanager
    def listening(self, teacher: nn.Module) -> Iterator[None]:
        handles = [handle for layer in range(self.shape.layers) for handle in self._listen_in(teacher, layer)]
        final = teacher.get_submodule(self.family.module_of(self.family.row("final_norm"), 0))
        handles.append(final.register_forward_hook(partial(_hear_norm, self.final_norm)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _listen_in(self, teacher: nn.Module, layer: int) -> Iterator[torch.utils.hooks.RemovableHandle]:
        found = self.layers[layer]
        yield self._module(teacher, "o", layer).register_forward_pre_hook(partial(_hear_input, found.attention))
        down = self._module(teacher, "down", layer)
        if self.shape.experts:
            yield down.register_forward_pre_hook(partial(_hear_experts, found))
        else:
            yield down.register_forward_pre_hook(partial(_hear_input, found.ffn[0]))
        for role, stream in found.streams.items():
            if self.family.find(role):
                yield self._module(teacher, role, layer).register_forward_hook(partial(_hear_norm, stream))
            else:  # the readers have no norm in front of them and see the stream itself
                readers = ATTENTION_READERS if role == "attention_norm" else FFN_READERS
                reader = next(r for r in readers if self.family.find(r))
                yield self._module(teacher, reader, layer).register_forward_pre_hook(partial(_hear_stream, stream))
        block = teacher.get_submodule(self.family.layer_module.format(layer=layer))
        yield block.register_forward_hook(partial(_hear_layer, found))

    def _module(self, teacher: nn.Module, role: Role, layer: int) -> nn.Module:
        """A weight's module; of an expert's weight, the module that holds all experts."""
        name = self.family.module_of(self.family.row(role), layer)
        return teacher.get_submodule(name.split(".{expert}")[0])

    def statistics(self, tokens: int) -> Statistics:
        for number, layer in enumerate(self.layers):
            scores = [layer.attention.score_C, *(channels.score_C for channels in layer.ffn)]
            if not all(bool(torch.isfinite(score_C).all()) for score_C in scores):
                raise DamagedCheckpoint(
                    f"the teacher's activations in layer {number} are not numbers; its weights are damaged",
                    pointer="/teacher",
                )
        return Statistics(layers=self.layers, final_norm=self.final_norm, tokens=tokens)


def _hear_input(channels: Channels, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    channels.add(args[0])


def _hear_stream(stream: Stream, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    stream.add(args[0], args[0])


def _hear_norm(stream: Stream, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    stream.add(args[0], output)


def _hear_layer(
    found: LayerStatistics, _: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
) -> None:
    after = output if isinstance(output, Tensor) else output[0]
    found.cosine_sum += torch.cosine_similarity(args[0].float(), after.float(), dim=-1).double().sum()


def _hear_experts(found: LayerStatistics, experts: Any, args: tuple[Tensor, ...]) -> None:
    """transformers keeps the experts of a layer in two tensors and gives no module for one of them.

    The inputs are tokens [T, H], the numbers of each token's experts [T, K] and the router's weights [T, K].
    """
    x_TH, expert_TK, weight_TK = args
    for number, channels in enumerate(found.ffn):
        token_N, place_N = torch.where(expert_TK == number)
        if not len(token_N):
            continue
        gate_NF, up_NF = nn.functional.linear(x_TH[token_N], experts.gate_up_proj[number]).chunk(2, dim=-1)
        channels_NF = experts.act_fn(gate_NF) * up_NF
        weight_N = weight_TK[token_N, place_N]
        channels.add_routed(channels_NF, weight_N)
        out_NH = nn.functional.linear(channels_NF, experts.down_proj[number]) * weight_N[:, None]
        found.expert_score_E[number] += out_NH.float().norm(dim=1).double().sum()
