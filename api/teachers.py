"""A teacher's folder, checked once for as long as it stays as it is: a sweep of many jobs names the same one."""

import os
from functools import lru_cache
from pathlib import Path

from foundry.intake import checkpoint
from foundry.intake.checkpoint import Checkpoint

_Print = tuple[tuple[str, int, int, int], ...]


def open_checkpoint(folder: Path) -> Checkpoint:
    """`foundry.intake.checkpoint.open_checkpoint`; only what was sound is remembered."""
    return _open(folder, _print_of(folder))


def check_tokenizer(folder: Path) -> None:
    """`foundry.intake.checkpoint.check_tokenizer`; only what was sound is remembered."""
    _check(folder, _print_of(folder))


@lru_cache(maxsize=32)
def _open(folder: Path, _: _Print) -> Checkpoint:
    return checkpoint.open_checkpoint(folder)


@lru_cache(maxsize=32)
def _check(folder: Path, _: _Print) -> None:
    checkpoint.check_tokenizer(folder)


def _print_of(folder: Path) -> _Print:
    """Name, inode, size and time of every file, and of what a link leads to: any change of one is a change here."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = os.stat(entry.path)
            except OSError:  # a link that leads nowhere; the check itself says so
                status = os.lstat(entry.path)
            found.append((entry.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))
