"""One pass over the calibration text, layer by layer, that gathers what every axis and every target needs.

Letters of shapes: B sequences, S positions, T tokens, H hidden, F ffn, C channels of a projection's input, E experts,
K experts of a token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundry.engine.context import RunContext
from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.statistics import LayerStatistics, Statistics, Stored, Stream, column_squares, places_of
from foundry.engine.prune.streams import Behind, StreamFile, new_stream
from foundry.engine.prune.symmetric import SymmetricSum
from foundry.engine.prune.texts import Texts
from foundry.engine.tensors import write_tensors
from foundry.engine.workspace import sync
from foundry.errors import DamagedCheckpoint
from foundry.spec.lifecycle import Progress
from foundry.spec.weights import ATTENTION_READERS, FFN_READERS, WRITERS, Role

_SHORTEST = 2.0**-60
"""Root mean square of a position that is taken for nothing."""


class Calibration:
    """The teacher's pass over both texts, in a folder that a pass cut short is taken up from.

    Kept are the statistics of every layer, the streams of the brief part of the text between all layers, and what the
    teacher's head reads of the choice.
    """

    def __init__(self, teacher: StreamedModel, texts: Texts, folder: Path, context: RunContext) -> None:
        self.teacher, self.texts, self._folder, self._context = teacher, texts, folder, context

    def run(self) -> Statistics:
        """Raises `DamagedCheckpoint` when an activation is not a number, `Stopped` when asked to."""
        layers = self.teacher.shape.layers
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._file(0).exists() and not self._stream(0).exists():
            self._begin()
        with Behind() as behind:
            for layer in range(layers):
                if not self._file(layer).exists():
                    self._save(layer, self._hear_layer(layer), behind)
                self._context.progress(Progress(stage="prune", part="calibration", step=layer + 1, steps=layers))
            if not self._file(layers).exists():
                self._save(layers, self._hear_end(), behind)
        return self.statistics()

    def statistics(self) -> Statistics:
        """Of a pass that is complete."""
        shape, device = self.teacher.shape, self.teacher.device
        return Statistics(
            layers=[LayerStatistics(self._file(layer), shape.experts, device) for layer in range(shape.layers)],
            final_norm=Stream(Stored(self._file(shape.layers), device), "streams.final_norm"),
            tokens=self.texts.tokens,
            centred=self.teacher.family.norm == "layer",
        )

    def brief(self, layer: int) -> StreamFile:
        """The stream of the brief rows [N, S, H] in front of a layer; behind the last for the number of layers."""
        return StreamFile(self._folder / f"brief-{layer:04d}.bin", self._size(self.texts.brief), self._context.dtype)

    def choice(self) -> StreamFile:
        """What the teacher's head reads of the choice [N, S, H]."""
        return StreamFile(self._folder / "choice.bin", self._size(self.texts.choice), self._context.dtype)

    def _begin(self) -> None:
        with self.teacher.beginning() as begin, torch.no_grad():
            whole = slice(0, len(self.texts.packed))
            with new_stream(self._stream(0), self._size(whole), self._context.dtype) as stream:
                for rows in self.texts.batches(whole):
                    stream[rows] = begin(self._inputs(rows))

    def _hear_layer(self, layer: int) -> dict[str, Tensor]:
        whole = slice(0, len(self.texts.packed))
        before = StreamFile(self._stream(layer), self._size(whole), self._context.dtype)
        sums = _LayerSums(self.teacher, layer)
        with (
            new_stream(self._stream(layer + 1), self._size(whole), self._context.dtype) as after,
            self.teacher.layer(layer), torch.no_grad(),
        ):  # fmt: skip
            with sums.listening():
                self._advance(layer, self.texts.calibration, before, after)
            self._advance(layer, self.texts.choice, before, after)
            with self._new(layer + 1, self.texts.brief) as brief:
                self._copy(after, brief)
            return sums.tensors()

    def _copy(self, stream: StreamFile, brief: StreamFile) -> None:
        for rows in self.texts.batches(self.texts.brief):
            brief[rows] = stream[rows]

    def _advance(self, layer: int, rows: slice, before: StreamFile, after: StreamFile) -> None:
        for some in self.texts.batches(rows):
            self._context.heed()
            stream_BSH = before[some].to(self._context.device)
            after[some] = self.teacher.run(layer, self._inputs(some), stream_BSH)

    def _hear_end(self) -> dict[str, Tensor]:
        layers = self.teacher.shape.layers
        whole = slice(0, len(self.texts.packed))
        stream = StreamFile(self._stream(layers), self._size(whole), self._context.dtype)
        sums = StreamSums(self.teacher.shape.hidden, self._context.device, centred=self.teacher.family.norm == "layer")
        size = self._size(self.texts.choice)
        with self.teacher.end(head=False) as end, torch.no_grad():
            for rows in self.texts.batches(self.texts.calibration):
                stream_BSH = stream[rows].to(self._context.device)
                sums.add(stream_BSH, end.norm(stream_BSH))
            with new_stream(self._folder / "choice.bin", size, self._context.dtype) as choice:
                for rows in self.texts.batches(self.texts.choice):
                    read_BSH = end.hidden(stream[rows].to(self._context.device))
                    choice[rows.start - self.texts.choice.start : rows.stop - self.texts.choice.start] = read_BSH
        return sums.tensors("streams.final_norm")

    def _save(self, layer: int, tensors: dict[str, Tensor], behind: Behind) -> None:
        aside = self._file(layer).with_suffix(".partial")
        write_tensors(tensors, aside)

        def finish() -> None:
            sync(aside)
            aside.replace(self._file(layer))
            self._stream(layer).unlink()

        behind(finish)

    def _file(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:04d}.safetensors"

    def _stream(self, layer: int) -> Path:
        return self._folder / f"stream-{layer:04d}.bin"

    def _new(self, layer: int, rows: slice) -> Any:
        return new_stream(self._folder / f"brief-{layer:04d}.bin", self._size(rows), self._context.dtype)

    def _size(self, rows: slice) -> tuple[int, int, int]:
        return rows.stop - rows.start, self.texts.packed.sequence_tokens, self.teacher.shape.hidden

    def _inputs(self, rows: slice) -> dict[str, Any]:
        return self.texts.inputs(rows, self._context.device)


class _ChannelSums:
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


class _LayerSums:
    """The accumulators of one layer and the hooks that fill them."""

    def __init__(self, teacher: StreamedModel, layer: int) -> None:
        shape, device = teacher.shape, teacher.device
        self._teacher, self._layer = teacher, layer
        self._attention = _ChannelSums(shape.heads * shape.head_dim, device)
        self._ffn = [_ChannelSums(shape.ffn, device) for _ in range(max(1, shape.experts))]
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
        scores = [value for name, value in found.items() if name.endswith((".score", ".contribution"))]
        if not all(bool(torch.isfinite(value).all()) for value in scores):
            raise DamagedCheckpoint(
                f"the teacher's activations in layer {self._layer} are not numbers; its weights are damaged",
                pointer="/teacher",
            )
        for role, stream in self._streams.items():
            found |= stream.tensors(f"streams.{role}")
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


def _hear_input(channels: _ChannelSums, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    channels.add(args[0])


def _hear_stream(stream: StreamSums, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    stream.add(args[0])


def _hear_norm(stream: StreamSums, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    stream.add(args[0], output)
