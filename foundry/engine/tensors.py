"""Tensors to disk as safetensors, with a full disk told apart from a broken one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from foundry.errors import StorageFull

_FULL = ("No space left on device", "Disk quota exceeded")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file. Raises `StorageFull`."""
    with full_disk_said(path):
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path, metadata={"format": "pt"})


@contextmanager
def full_disk_said(path: Path) -> Iterator[None]:
    """Turn safetensors' own error, which is no OSError and has no errno, into `StorageFull`."""
    try:
        yield
    except SafetensorError as error:
        if not any(text in str(error) for text in _FULL):
            raise
        raise StorageFull(f"no space left to write {path.name}; free some or give the job another folder") from error
