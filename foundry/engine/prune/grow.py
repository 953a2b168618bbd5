"""Makes a student from the bottom up, one layer in memory at a time: cut it, let it learn, write it, run it.

N rows, S positions, H teacher's hidden, D student's hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundry.engine.context import RunContext
from foundry.engine.products import inner_dtype
from foundry.engine.prune.calibrate import Calibration
from foundry.engine.prune.heads import HeadRows, divergence
from foundry.engine.prune.layers import StreamedModel
from foundry.engine.prune.local import learn, relative_error
from foundry.engine.prune.slicer import Slicer
from foundry.engine.prune.streams import Behind, StreamFile, new_stream
from foundry.engine.prune.texts import Texts
from foundry.engine.tensors import CheckpointWriter, Reader
from foundry.engine.workspace import read_json, write_json
from foundry.spec.lifecycle import Progress

_HEAD_BYTES = 2**21
"""Of a head that stays on disk, how much is read at a time: what caches hold."""

Errors = list[tuple[float, float]]
"""Of each layer before and after its repair: relative and squared, of the last one its KL in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What layers learn from; None in its place cuts them and no more."""

    rows: slice
    """Of the calibration."""
    goals: Callable[[int], StreamFile]
    """The teacher's streams of these rows [N, S, H] in front of one of its layers, asked for in ascending order."""
    epochs: int


class Growth:
    """One student in the making. With a `writer`, a growth cut short is taken up from its folder."""

    def __init__(
        self, slicer: Slicer, calibration: Calibration, lesson: Lesson | None, folder: Path, context: RunContext,
        writer: CheckpointWriter | None = None,
    ) -> None:  # fmt: skip
        self._slicer, self._calibration, self._lesson = slicer, calibration, lesson
        self._folder, self._context, self._writer = folder, context, writer
        self._texts: Texts = calibration.texts
        self._plan = slicer.plan
        self._student = StreamedModel(
            slicer.config(), slicer.checkpoint.family, self._plan.shape, slicer.checkpoint.present, slicer.tensor,
            device=context.device, dtype=context.dtype,
        )  # fmt: skip
        learned = self._texts.batches(lesson.rows) if lesson else []
        self._learned = len(learned)
        self._batches = [*learned, *self._texts.batches(self._texts.choice)]

    def run(self) -> Errors:
        """Up to the last layer. Raises `Stopped`; a layer that was being made is then made again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        errors: Errors = []
        if self._state_file.exists():
            errors = [(before, after) for before, after in read_json(self._state_file)]
        else:
            self._begin()
        with Behind() as behind:
            for layer in range(len(errors), self._plan.shape.layers):
                errors.append(self._layer(layer))
                behind(partial(self._finish, layer, list(errors)))
                step, steps = layer + 1, self._plan.shape.layers
                self._context.progress(Progress(stage="prune", part=self._plan.target, step=step, steps=steps))
        return errors

    @torch.no_grad()
    def kl(self) -> float:
        """KL(teacher || student) of a grown student on the choice, nats per token."""
        choice, total = self._calibration.choice(), 0.0
        stream = self._stream(self._plan.shape.layers)
        dtype, device = self._context.dtype, self._context.device
        with self._student.end(head=False) as mine, inner_dtype(dtype, device):
            heads = self._heads(mine.softcap)
            start = self._texts.choice.start
            for number in range(self._learned, len(self._batches)):
                rows = self._batches[number]
                targets_BS, _ = self._texts.labels(rows, device)
                read_TD = mine.hidden(stream[self._place(number)].to(device))[targets_BS]
                goal_TH = choice[rows.start - start : rows.stop - start].to(device)[targets_BS]
                total += float(divergence(read_TD, heads[0], goal_TH, heads[1], dtype)[0])
        return total / self._texts.counted(self._texts.choice)

    def _begin(self) -> None:
        """What stands outside the layers, and the stream in front of the first."""
        if self._writer:
            for place in self._slicer.places:
                if not place.weight.per_layer:
                    value = self._slicer.tensor(place)
                    self._writer.write(place.name, value)
                    if place.name == self._student.head_place.name and self._context.device.type == "cpu":
                        self._put_head_down(value)
        with self._student.beginning() as begin, self._new_stream(0) as stream, torch.no_grad():
            for number in range(len(self._batches)):
                stream[self._place(number)] = begin(self._inputs(number))
        self._note([])

    def _finish(self, layer: int, errors: Errors) -> None:
        self._note(errors)
        self._stream_file(layer).unlink()

    def _note(self, errors: Errors) -> None:
        """How far it is; one entry a layer."""
        if self._writer:
            self._writer.sync()
            write_json(self._state_file, errors)

    def _layer(self, layer: int) -> tuple[float, float]:
        before = self._stream(layer)

        def output(number: int) -> Tensor:
            self._context.heed()
            self._student.return_memory()  # what the batch before, or the layer's making, has left
            stream_BSD = before[self._place(number)].to(self._context.device)
            with self._autocast():
                return self._student.run(layer, self._inputs(number), stream_BSD)

        with self._student.layer(layer, torch.float32) as module:
            errors = self._learn(layer, module, output) if self._lesson else (0.0, 0.0)
            self._round(layer)
            if self._writer:
                for place, value in self._student.stored(layer):
                    self._writer.write(place.name, value.to(self._slicer.dtype(place)))
            with self._new_stream(layer + 1) as after, torch.no_grad():
                for number in range(len(self._batches)):
                    after[self._place(number)] = output(number)
        return errors

    def _learn(self, layer: int, module: nn.Module, output: Callable[[int], Tensor]) -> tuple[float, float]:
        assert self._lesson is not None
        following = (*self._plan.layers[1:], self._plan.teacher_shape.layers)[layer]
        wanted = self._lesson.goals(following)
        dtypes = {self._slicer.dtype(place) for place in self._student.places(layer)}
        learn_from = partial(
            learn, module, batches=self._learned, hidden=self._plan.shape.hidden, epochs=self._lesson.epochs,
            seed=self._context.seed, held=dtypes.pop() if len(dtypes) == 1 else torch.float32,
            rounded=lambda: self._round(layer),
        )  # fmt: skip
        if layer == self._plan.shape.layers - 1:
            with self._ends() as distance:
                return learn_from(error=lambda number: distance(output(number), wanted, number))
        rows = self._lesson.rows
        size = (rows.stop - rows.start, self._texts.packed.sequence_tokens, self._plan.shape.hidden)
        goals = StreamFile(self._folder / "goals.bin", size, self._context.dtype, new=True)
        for number in range(self._learned):
            some = self._batches[number]
            goals[some] = wanted[some].to(self._context.device).float() @ self._slicer.axes_HD

        def error(number: int) -> Tensor:
            return relative_error(output(number), goals[self._batches[number]].to(self._context.device))

        return learn_from(error=error)

    @torch.no_grad()
    def _round(self, layer: int) -> None:
        """To the types in which the weights are stored: what comes above sees the layer as it will be."""
        for place, value in self._student.stored(layer):
            value.copy_(value.to(self._slicer.dtype(place)))

    @contextmanager
    def _ends(self) -> Iterator[Callable[[Tensor, StreamFile, int], Tensor]]:
        """A function that gives the KL from teacher to student, from the streams behind their last layers.

        What is read there is a distribution, and only that: the last layer need not put out the teacher's stream.
        """
        dtype, device = self._context.dtype, self._context.device
        teacher = self._calibration.teacher
        with self._student.end(head=False) as mine, teacher.end(head=False) as theirs, inner_dtype(dtype, device):
            heads = self._heads(mine.softcap)

            def distance(stream_BSD: Tensor, wanted: StreamFile, number: int) -> Tensor:
                rows = self._batches[number]
                targets_BS, labels_T = self._texts.labels(rows, device)
                with self._autocast():
                    read_TD = mine.hidden(stream_BSD)[targets_BS].float()
                with torch.no_grad():
                    goal_TH = theirs.hidden(wanted[rows].to(device))[targets_BS]
                total, gradient_TD = divergence(read_TD, heads[0], goal_TH, heads[1], dtype)
                self._student.return_memory()  # of the logits, before the way back through the layer
                scale = 1 / max(1, len(labels_T))
                if gradient_TD is None:
                    return total.float() * scale
                # A number whose gradient is the one that was found.
                toward = (read_TD * gradient_TD).sum()
                return (total.float() + toward - toward.detach()) * scale

            yield distance

    def _heads(self, softcap: float | None) -> tuple[HeadRows, HeadRows]:
        """The student's and the teacher's."""
        teacher, student = self._calibration.teacher, self._student
        if self._context.device.type != "cpu":
            return HeadRows.of(student.head(), softcap), HeadRows.of(teacher.head(), softcap)
        read = Reader(self._slicer.checkpoint, self._context.device, _HEAD_BYTES)
        vocabulary, hidden = student.head_place.size
        if not self._head_file.exists():
            self._put_head_down(student.head())
        file = StreamFile(self._head_file, (vocabulary, 1, hidden), self._context.dtype)
        step = max(1, _HEAD_BYTES // (hidden * file.dtype.itemsize))

        def mine() -> Iterator[tuple[slice, Tensor]]:
            for start in range(0, vocabulary, step):
                rows = slice(start, min(start + step, vocabulary))
                yield rows, file[rows].squeeze(1)

        theirs = partial(read.pieces, teacher.head_place.name)
        return HeadRows(vocabulary, mine, softcap), HeadRows(vocabulary, theirs, softcap)

    def _put_head_down(self, head_VD: Tensor) -> None:
        size = len(head_VD), 1, head_VD.shape[1]
        with new_stream(self._head_file, size, self._context.dtype, durable=self._writer is not None) as file:
            file[slice(0, len(head_VD))] = head_VD[:, None]

    def _place(self, number: int) -> slice:
        """Where a batch's rows lie in the student's streams: the choice follows right behind what is learned from."""
        rows = self._batches[number]
        if number < self._learned or not self._learned:
            start = 0 if self._learned else self._texts.choice.start
            return slice(rows.start - start, rows.stop - start)
        shift = self._texts.choice.start - self._batches[self._learned - 1].stop
        return slice(rows.start - shift, rows.stop - shift)

    def _inputs(self, number: int) -> dict[str, Any]:
        return self._texts.inputs(self._batches[number], self._context.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._context.device.type, self._context.dtype, enabled=self._context.dtype != torch.float32
        )

    @property
    def _state_file(self) -> Path:
        return self._folder / "layers.json"

    @property
    def _size(self) -> tuple[int, int, int]:
        rows = sum(batch.stop - batch.start for batch in self._batches)
        return rows, self._texts.packed.sequence_tokens, self._plan.shape.hidden

    @property
    def _head_file(self) -> Path:
        return self._folder / "head.bin"

    def _stream_file(self, layer: int) -> Path:
        return self._folder / f"student-{layer:04d}.bin"

    def _stream(self, layer: int) -> StreamFile:
        return StreamFile(self._stream_file(layer), self._size, self._context.dtype)

    def _new_stream(self, layer: int) -> Any:
        size, dtype = self._size, self._context.dtype
        return new_stream(self._stream_file(layer), size, dtype, durable=self._writer is not None)
