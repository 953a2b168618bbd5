"""One pass over the calibration text, layer by layer, that gathers what every axis and every target needs.

N rows, B rows of a batch, S positions, H hidden.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundry.engine.context import RunContext
from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.statistics import LayerStatistics, Statistics, Stored, Stream
from foundry.engine.prune.streams import Behind, StreamFile, new_stream
from foundry.engine.prune.sums import LayerSums, StreamSums, require_numbers
from foundry.engine.prune.texts import Texts
from foundry.engine.tensors import write_tensors
from foundry.engine.workspace import sync
from foundry.spec.lifecycle import Progress


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
        sums = LayerSums(self.teacher, layer)
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
        found = sums.tensors("streams.final_norm")
        require_numbers(found, "behind the last layer")
        return found

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
