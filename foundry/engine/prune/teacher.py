"""The teacher's streams of the whole calibration, for students that learn from them layer by layer.

N rows, S positions, H hidden.
"""

from pathlib import Path
from typing import Any

import torch

from foundry.engine.context import RunContext
from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.streams import StreamFile, new_stream
from foundry.engine.prune.texts import Texts


class TeacherStreams:
    """Moved up as they are asked for."""

    def __init__(self, teacher: StreamedModel, texts: Texts, folder: Path, context: RunContext) -> None:
        self._teacher, self._texts, self._folder, self._context = teacher, texts, folder, context

    @torch.no_grad()
    def before(self, layer: int) -> StreamFile:
        """In front of a layer [N, S, H]. Raises `Stopped`."""
        reached = self._reached()
        if reached is None:
            with self._teacher.beginning() as begin, self._new(0) as stream:
                for rows in self._texts.batches(self._texts.calibration):
                    stream[rows] = begin(self._texts.inputs(rows, self._context.device))
            reached = 0
        for number in range(reached, layer):
            below = self._open(number)
            with self._teacher.layer(number), self._new(number + 1) as above:
                for rows in self._texts.batches(self._texts.calibration):
                    self._context.heed()
                    inputs = self._texts.inputs(rows, self._context.device)
                    above[rows] = self._teacher.run(number, inputs, below[rows].to(self._context.device))
            self._file(number).unlink()
        return self._open(layer)

    def _reached(self) -> int | None:
        """The highest layer that a file stands in front of; after a crash there may be two."""
        found = sorted(int(path.stem.removeprefix("teacher-")) for path in self._folder.glob("teacher-*.bin"))
        return found[-1] if found else None

    def _file(self, layer: int) -> Path:
        return self._folder / f"teacher-{layer:04d}.bin"

    @property
    def _size(self) -> tuple[int, int, int]:
        return self._texts.calibration_rows, self._texts.packed.sequence_tokens, self._teacher.shape.hidden

    def _open(self, layer: int) -> StreamFile:
        return StreamFile(self._file(layer), self._size, self._context.dtype)

    def _new(self, layer: int) -> Any:
        return new_stream(self._file(layer), self._size, self._context.dtype)
