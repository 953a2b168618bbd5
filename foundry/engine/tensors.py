"""A checkpoint's tensors from and to safetensors, one at a time; a full disk is told apart from a broken one."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from foundry.engine.context import RunContext
from foundry.errors import DamagedCheckpoint, StorageFull
from foundry.intake.checkpoint import Checkpoint
from foundry.intake.safetensors import TensorEntry

_FULL = ("No space left on device", "Disk quota exceeded")
_SHARD_BYTES = 4 * 2**30
_STAGED_BYTES = 2**25
"""Of what is on its way to or from a GPU, how much is in the host's memory at a time."""
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64,
    "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Reader:
    """A checkpoint's tensors, read from disk as they are asked for.

    By plain reads at the places that the header names: a mapped file would stay in the process's memory as long as any
    tensor of it does.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, piece_bytes: int = 2**26) -> None:
        """`pieces` are about `piece_bytes` large."""
        self._checkpoint, self._device, self._piece_bytes = checkpoint, device, piece_bytes
        self._files: dict[Path, int] = {}
        for entry in checkpoint.tensors.values():
            if entry.file not in self._files:
                self._files[entry.file] = os.open(entry.file, os.O_RDONLY)

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def __call__(self, name: str) -> Tensor:
        entry = self._checkpoint.tensors[name]
        return self._read(name, entry.start, entry.size)

    def dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self._checkpoint.tensors[name].dtype]

    def pieces(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of a tensor at a time, with their place."""
        entry = self._checkpoint.tensors[name]
        count, *of_row = entry.size
        row_bytes = (entry.end - entry.start) // max(1, count)
        step = max(1, self._piece_bytes // max(1, row_bytes))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            yield rows, self._read(name, entry.start + start * row_bytes, (rows.stop - start, *of_row))

    def _read(self, name: str, start: int, size: tuple[int, ...]) -> Tensor:
        value = torch.empty(size, dtype=self.dtype(name), device=self._device)
        read_at(self._files[self._checkpoint.tensors[name].file], value, start)
        return value


def read_tensor(entry: TensorEntry, device: torch.device) -> Tensor:
    """One tensor at the place that a header names. Raises `OSError` when the file is missing or ends before it."""
    value = torch.empty(entry.size, dtype=_DTYPES[entry.dtype], device=device)
    file = os.open(entry.file, os.O_RDONLY)
    try:
        read_at(file, value, entry.start)
    finally:
        os.close(file)
    return value


def read_at(file: int, value: Tensor, start: int) -> None:
    """Fill a contiguous tensor from an open file. Raises `OSError` when the file ends before it.

    A GPU's by way of pinned memory: one piece is read while the one before it is copied.
    """
    flat = value.view(-1).view(torch.uint8)
    if not value.is_cuda:
        _read_bytes(file, flat, start)
        return
    staged = torch.empty(min(len(flat), _STAGED_BYTES), dtype=torch.uint8, pin_memory=True)
    for done in range(0, len(flat), _STAGED_BYTES):
        piece = flat[done : done + _STAGED_BYTES]
        _read_bytes(file, staged[: len(piece)], start + done)
        piece.copy_(staged[: len(piece)])


def _read_bytes(file: int, flat: Tensor, start: int) -> None:
    view, done = memoryview(flat.numpy().data), 0
    while done < len(view):  # one call reads at most 2 GiB
        count = os.preadv(file, [view[done:]], start + done)
        if not count:
            raise OSError(f"the file ends {len(view) - done} bytes early")
        done += count


def write_at(file: int, value: Tensor, start: int) -> None:
    """Write a tensor's bytes to a place in an open file."""
    flat = value.detach().contiguous().view(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        _write_bytes(file, flat, start)
        return
    staged = torch.empty(min(len(flat), _STAGED_BYTES), dtype=torch.uint8, pin_memory=flat.is_cuda)
    for done in range(0, len(flat), _STAGED_BYTES):
        piece = flat[done : done + _STAGED_BYTES]
        _write_bytes(file, staged[: len(piece)].copy_(piece), start + done)


def _write_bytes(file: int, flat: Tensor, start: int) -> None:
    view, done = memoryview(flat.numpy().data), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], start + done)


def check_finite(checkpoint: Checkpoint, context: RunContext) -> None:
    """Read every weight once, before any long work; raise `DamagedCheckpoint` for one that is not a number."""
    read = Reader(checkpoint, context.device)
    for name in checkpoint.tensors:
        context.heed()
        if not all(bool(torch.isfinite(piece).all()) for _, piece in read.pieces(name)):
            raise DamagedCheckpoint(
                f"tensor {name!r} holds numbers that are infinite or not numbers; copy or train the checkpoint again",
                pointer="/teacher",
            )


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file, of which the disk is reserved first. Raises `OSError` with ENOSPC where it is full.

    By our own writer, for the library's copies all tensors before it writes them.
    """
    entries = [Entry(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    path.unlink(missing_ok=True)
    file, at = _opened(path, entries), _data_start(entries)
    try:
        for entry in entries:
            write_at(file, tensors[entry.name], at)
            at += entry.bytes
    finally:
        os.close(file)


@contextmanager
def full_disk_said(path: Path) -> Iterator[None]:
    """Turn safetensors' own error, which is no OSError and has no errno, into `StorageFull`."""
    try:
        yield
    except SafetensorError as error:
        if not any(text in str(error) for text in _FULL):
            raise
        raise StorageFull(f"no space left to write {path.name}; free some or give the job another folder") from error


class Entry(NamedTuple):
    """A tensor that is to come."""

    name: str
    dtype: torch.dtype
    size: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.size).numel()


class CheckpointWriter:
    """The weight files of a model whose tensors come one at a time, in any order.

    Names and sizes are known before: headers are written and the disk is reserved first, then each tensor goes to its
    place. So memory holds one tensor, a full disk is said before the work, and a writer made again on the same folder
    goes on where another was killed. One model.safetensors, or shards with an index where one would be too large.
    The library has no such writer: its `save_file` wants all tensors of a file at once.

    Raises `OSError` with ENOSPC when the tensors do not fit on the disk.
    """

    def __init__(self, folder: Path, entries: Iterable[Entry], shard_bytes: int = _SHARD_BYTES) -> None:
        shards = list(_shards(entries, shard_bytes))
        names = [_shard_name(number, len(shards)) for number in range(len(shards))]
        for other in folder.glob("model*.safetensors*"):
            if other.name not in names:
                other.unlink()
        self._files: list[int] = []
        self._places: dict[str, tuple[int, int, Entry]] = {}
        for name, shard in zip(names, shards, strict=True):
            file, start = _opened(folder / name, shard), _data_start(shard)
            self._files.append(file)
            for entry in shard:
                self._places[entry.name] = (file, start, entry)
                start += entry.bytes
        if len(shards) > 1:
            _write_index(folder, dict(zip(names, shards, strict=True)))

    def write(self, name: str, value: Tensor) -> None:
        """Put a tensor at its place. Raises `ValueError` for one of another size or type than was announced."""
        file, start, entry = self._places[name]
        if tuple(value.shape) != entry.size or value.dtype != entry.dtype:
            raise ValueError(f"{name}: {tuple(value.shape)} in {value.dtype}, announced {entry.size} in {entry.dtype}")
        write_at(file, value, start)

    def sync(self) -> None:
        """Flush what is written to the disk."""
        for file in self._files:
            os.fsync(file)

    def close(self) -> None:
        self.sync()
        for file in self._files:
            os.close(file)
        self._files = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_sharded(tensors: Iterable[tuple[str, Tensor]], entries: Iterable[Entry], folder: Path) -> None:
    """Write a model's tensors as they come."""
    with CheckpointWriter(folder, entries) as writer:
        for name, value in tensors:
            writer.write(name, value)


def reserve(file: int, size: int) -> None:
    """Give an open file this many bytes, and have the disk keep them where the platform can."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    os.ftruncate(file, size)


def _shards(entries: Iterable[Entry], shard_bytes: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    filled = 0
    for entry in entries:
        if shard and filled + entry.bytes > shard_bytes:
            yield shard
            shard, filled = [], 0
        shard.append(entry)
        filled += entry.bytes
    yield shard


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _header(shard: list[Entry]) -> bytes:
    """8 bytes of length, then JSON, padded with spaces so that the tensors begin at a multiple of 8."""
    rows: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, size in shard:
        start, end = end, end + Entry(name, dtype, size).bytes
        rows[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(rows, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _data_start(shard: list[Entry]) -> int:
    return len(_header(shard))


def _opened(path: Path, shard: list[Entry]) -> int:
    header = _header(shard)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    reserve(file, len(header) + sum(entry.bytes for entry in shard))
    os.pwrite(file, header, 0)
    return file


def _write_index(folder: Path, shards: Mapping[str, list[Entry]]) -> None:
    total = sum(entry.bytes for shard in shards.values() for entry in shard)
    where = {entry.name: file for file, shard in shards.items() for entry in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
