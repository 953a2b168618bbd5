"""Residual streams on disk: what goes into one layer, for every row of a text.

N rows of a text, S positions, H hidden.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from foundry.engine.tensors import reserve
from foundry.engine.workspace import sync


def open_stream(path: Path, size: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """A tensor [N, S, H] that is a file: the system keeps in memory what it has room for.

    The file is made where it is missing, with its bytes reserved: a mapped file that finds the disk full kills its
    process. Raises `OSError` with ENOSPC instead.
    """
    count = math.prod(size)
    if not path.exists():
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            reserve(file, count * dtype.itemsize)
        finally:
            os.close(file)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(size)


@contextmanager
def new_stream(path: Path, size: tuple[int, int, int], dtype: torch.dtype, *, durable: bool = True) -> Iterator[Tensor]:
    """A stream to fill that appears under its name only when complete; `durable` flushes it to the disk first."""
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)
    yield open_stream(aside, size, dtype)
    if durable:
        sync(aside)
    aside.replace(path)
