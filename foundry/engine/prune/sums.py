"""What calibration adds up while the text passes through one layer of the teacher, and the hooks that hear it.

Letters of shapes: B sequences, S positions, T tokens, H hidden, F ffn, C channels of a projection's input, E experts,
K experts of a token, N tokens of one expert.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.statistics import column_squares, places_of
from foundry.engine.prune.symmetric import SymmetricSum
from foundry.errors import DamagedCheckpoint
from foundry.spec.weights import ATTENTION_READERS, FFN_READERS, WRITERS, Role

_SHORTEST = 2.0**-60
"""Root mean square of a position that is taken for nothing."""


class ChannelSums:
    """Accumulates what `Channels` reads."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self._squares_C = torch.zeros(channels, dtype=torch.float64, device=device)
        self._gram_CC = SymmetricSum(channels, device)

    def add(self, x_BSC: Tensor) -> None:
        self._squares_C += x_BSC.float().abs().mean(dim=1).double().square().sum(dim=0)
        self._gram_CC.add(x_BSC.flatten(0, 1))

    def add_routed(self, x_TC: Tensor, weights_T: Tensor) -> None:
        """The tokens that a router sent to an expert; each counts as the router weighs it."""
        x = x_TC.float() * weights_T.float()[:, None]
        self._squares_C += x.double().square().sum(dim=0)
        self._gram_CC.add(x)

    def tensors(self, name: str, writer_HC: Tensor) -> dict[str, Tensor]:
        """`writer` is the projection that reads the channels."""
        energy_C = self._gram_CC.diagonal().double() * column_squares(writer_HC)
        scores = {f"{name}.score": self._squares_C.sqrt(), f"{name}.contribution": energy_C.sqrt()}
        return scores | self._gram_CC.tensors(f"{name}.gram")


class StreamSums:
    """Accumulates what `Stream` reads."""

    def __init__(self, hidden: int, device: torch.device, *, centred: bool) -> None:
        self._squares_H = torch.zeros(hidden, dtype=torch.float64, device=device)
        self._centred = centred
        self._covariance_HH = SymmetricSum(hidden, device)

    def add(self, x_BSH: Tensor, read_BSH: Tensor | None = None) -> None:
        """`x` is the stream, `read` what a norm makes of it where one stands. A layer norm sees `x` without its mean.

        A norm divides by the length, so that every position counts as much at its readers as any other, while the
        stream of a model's first token can be a thousand times as long (massive activations, arXiv 2402.17762).
        Division by the nearest power of two rounds nothing.
        """
        seen_BSH = x_BSH if read_BSH is None else read_BSH
        self._squares_H += seen_BSH.float().abs().mean(dim=1).double().square().sum(dim=0)
        flat = x_BSH.flatten(0, 1)
        if self._centred:
            flat = flat.float() - flat.float().mean(dim=1, keepdim=True)
        if read_BSH is not None:
            length_T1 = flat.float().square().mean(dim=1, keepdim=True).sqrt()
            scale_T1 = torch.exp2(-length_T1.clamp_min(_SHORTEST).log2().round())
            flat = flat * scale_T1.to(flat.dtype)
        self._covariance_HH.add(flat)

    def tensors(self, name: str) -> dict[str, Tensor]:
        return {f"{name}.score": self._squares_H.sqrt()} | self._covariance_HH.tensors(f"{name}.covariance")


class LayerSums:
    """The accumulators of one layer and the hooks that fill them."""

    def __init__(self, teacher: StreamedModel, layer: int) -> None:
        shape, device = teacher.shape, teacher.device
        self._teacher, self._layer = teacher, layer
        self._attention = ChannelSums(shape.heads * shape.head_dim, device)
        self._ffn = [ChannelSums(shape.ffn, device) for _ in range(max(1, shape.experts))]
        self._streams = {
            role: StreamSums(shape.hidden, device, centred=teacher.family.norm == "layer")
            for role in places_of(teacher.family)
        }
        self._expert_score_E = torch.zeros(shape.experts, dtype=torch.float64, device=device)
        self._cosine_sum = torch.zeros((), dtype=torch.float64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by the names of `LayerStatistics`, while the layer is loaded.

        Raises `DamagedCheckpoint` for what is not a number.
        """
        writers = self._writers()
        found = self._attention.tensors("attention", writers["o", 0])
        for number, channels in enumerate(self._ffn):
            found |= channels.tensors(f"ffn.{number}", writers["down", number])
        for role, stream in self._streams.items():
            found |= stream.tensors(f"streams.{role}")
        require_numbers(found, f"in layer {self._layer}")
        return found | {"expert_score": self._expert_score_E, "cosine_sum": self._cosine_sum}

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles = list(self._listen())
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _listen(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        family = self._teacher.family
        yield self._module("o").register_forward_pre_hook(partial(_hear_input, self._attention))
        hear = self._hear_experts if self._teacher.shape.experts else partial(_hear_input, self._ffn[0])
        yield self._module("down").register_forward_pre_hook(hear)
        for role, stream in self._streams.items():
            if family.find(role):
                yield self._module(role).register_forward_hook(partial(_hear_norm, stream))
            else:  # the readers have no norm in front of them and see the stream itself
                readers = ATTENTION_READERS if role == "attention_norm" else FFN_READERS
                reader = next(r for r in readers if family.find(r))
                yield self._module(reader).register_forward_pre_hook(partial(_hear_stream, stream))
        block = self._teacher.module(family.layer_module.format(layer=self._layer))
        yield block.register_forward_hook(self._hear_block)

    def _writers(self) -> dict[tuple[Role, int], Tensor]:
        """The matrices that write to the stream [H, C], by role and expert."""
        return {
            (place.weight.role, place.expert): value.T if place.weight.input_axis == 0 else value
            for place, value in self._teacher.stored(self._layer)
            if place.weight.role in WRITERS and not place.weight.is_bias
        }

    def _module(self, role: Role) -> nn.Module:
        """A weight's module; of an expert's weight, the module that holds all experts."""
        family = self._teacher.family
        return self._teacher.module(family.module_of(family.row(role), self._layer).split(".{expert}")[0])

    def _hear_block(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        after = output if isinstance(output, Tensor) else output[0]
        self._cosine_sum += torch.cosine_similarity(args[0].float(), after.float(), dim=-1).double().sum()

    def _hear_experts(self, experts: Any, args: tuple[Tensor, ...]) -> None:
        """transformers keeps the experts of a layer in two tensors and gives no module for one of them.

        The inputs are tokens [T, H], the numbers of each token's experts [T, K] and the router's weights [T, K].
        """
        x_TH, expert_TK, weight_TK = args
        for number, channels in enumerate(self._ffn):
            token_N, place_N = torch.where(expert_TK == number)
            if not len(token_N):
                continue
            gate_NF, up_NF = nn.functional.linear(x_TH[token_N], experts.gate_up_proj[number]).chunk(2, dim=-1)
            channels_NF = experts.act_fn(gate_NF) * up_NF
            weight_N = weight_TK[token_N, place_N]
            channels.add_routed(channels_NF, weight_N)
            out_NH = nn.functional.linear(channels_NF, experts.down_proj[number]) * weight_N[:, None]
            self._expert_score_E[number] += out_NH.float().norm(dim=1).double().sum()


def require_numbers(found: Mapping[str, Tensor], where: str) -> None:
    """Raise `DamagedCheckpoint` when a score is infinite or no number."""
    scores = [value for name, value in found.items() if name.endswith((".score", ".contribution"))]
    if not all(bool(torch.isfinite(value).all()) for value in scores):
        raise DamagedCheckpoint(
            f"the teacher's activations {where} are not numbers; its weights are damaged: fetch or save them anew",
            pointer="/teacher",
        )


def _hear_input(channels: ChannelSums, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    channels.add(args[0])


def _hear_stream(stream: StreamSums, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    stream.add(args[0])


def _hear_norm(stream: StreamSums, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    stream.add(args[0], output)
