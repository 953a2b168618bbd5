"""Disk that runs of one work folder have been promised, so that two jobs do not both begin on the last of it.

A promise is the file WORK/JOB/promised, locked for as long as its supervisor lives: where it is not locked, nobody
keeps it any more. Nothing is written ahead; what a job has already written counts as part of its promise.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundry.errors import StorageFull
from foundry.store.artifacts import storage_errors

_PROMISED = "promised"


@contextmanager
def promised_room(work: Path, job_id: str, need_bytes: int | None, least_free_bytes: int) -> Iterator[None]:
    """Hold `need_bytes` of the disk for a job, None where nobody knows; raise `StorageFull` when less is free."""
    job = work / job_id
    with storage_errors(work):
        job.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(work):
            free, promised = shutil.disk_usage(work).free, _promised_bytes(work, job_id)
            missing = max(0, (need_bytes or 0) - _used_bytes(job))
            if free - promised < missing + least_free_bytes:
                raise StorageFull(
                    f"a run needs {missing:,} bytes more in {work} and {least_free_bytes:,} must stay free; "
                    f"{free:,} are free, {promised:,} of them promised to other runs. Make room, then resume the job"
                )
            (job / _PROMISED).unlink(missing_ok=True)  # a frozen supervisor of an attempt before may hold its lock
            held = os.open(job / _PROMISED, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            os.write(held, str(need_bytes or 0).encode())
            fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(held)


def _promised_bytes(work: Path, but: str) -> int:
    """What other jobs may still write by the promises that somebody keeps."""
    total = 0
    for file in work.glob(f"*/{_PROMISED}"):
        if file.parent.name != but and _is_kept(file):
            try:
                total += max(0, int(file.read_text() or 0) - _used_bytes(file.parent))
            except (OSError, ValueError):
                continue
    return total


def _is_kept(file: Path) -> bool:
    try:
        with file.open("rb") as found:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _used_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue  # a run of before may still be at work there
    return total


@contextmanager
def _one_at_a_time(work: Path) -> Iterator[None]:
    lock = os.open(work / ".promises", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
