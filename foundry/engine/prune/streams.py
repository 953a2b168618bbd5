"""Residual streams on disk: what goes into one layer, for every row of a text; and flushes beside the work.

N rows of a text, B some of them, S positions, H hidden.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from foundry.engine.tensors import read_at, reserve, write_at


class StreamFile:
    """A tensor [N, S, H] in a file, of which some rows at a time are read and written."""

    def __init__(self, path: Path, size: tuple[int, int, int], dtype: torch.dtype, *, new: bool = False) -> None:
        """Open a file, or make a new one with its bytes reserved.

        Raises `OSError`: where it is missing or too short, or, with ENOSPC, where its bytes do not fit.
        """
        self.size, self.dtype = size, dtype
        self._row_bytes = size[1] * size[2] * dtype.itemsize
        self._file = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if new else 0), 0o666)
        if new:
            reserve(self._file, math.prod(size) * dtype.itemsize)

    def __getitem__(self, rows: slice) -> Tensor:
        """[B, S, H] on the CPU."""
        value = torch.empty((rows.stop - rows.start, *self.size[1:]), dtype=self.dtype)
        read_at(self._file, value, rows.start * self._row_bytes)
        return value

    def __setitem__(self, rows: slice, value_BSH: Tensor) -> None:
        write_at(self._file, value_BSH.to(self.dtype), rows.start * self._row_bytes)

    def sync(self) -> None:
        os.fsync(self._file)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


@contextmanager
def new_stream(
    path: Path, size: tuple[int, int, int], dtype: torch.dtype, *, durable: bool = True
) -> Iterator[StreamFile]:
    """A stream to fill that appears under its name only when complete; `durable` flushes it to the disk first."""
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)
    stream = StreamFile(aside, size, dtype, new=True)
    yield stream
    if durable:
        stream.sync()
    aside.replace(path)


class Behind:
    """One task at a time in a thread of its own: the flush of a layer to the disk while the next layer is worked on.

    A task begins when the one before it is done, and what that has raised is raised then, or at the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __call__(self, task: Callable[[], None]) -> None:
        self._wait()
        self._last = self._thread.submit(task)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last:
            last.result()
