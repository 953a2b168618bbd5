"""Disk is promised before a run starts; a promise ends with whoever gave it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foundry.errors import StorageFull
from workers.room import promised_room

ROOT = Path(__file__).parents[3]


def half(work: Path) -> int:
    work.mkdir(exist_ok=True)
    return int(0.6 * shutil.disk_usage(work).free)


def test_two_runs_are_not_both_promised_more_than_half_of_the_disk(tmp_path: Path) -> None:
    need = half(tmp_path)
    with promised_room(tmp_path, "job_1", need, 0):
        with pytest.raises(StorageFull, match="promised to other runs"), promised_room(tmp_path, "job_2", need, 0):
            pass
        with promised_room(tmp_path, "job_3", 1000, 0):
            pass
    with promised_room(tmp_path, "job_2", need, 0):
        pass


def test_what_a_job_has_written_is_part_of_its_own_promise(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    need = free + 10**6  # more than there is, but most of it is there already
    folder = tmp_path / "job_1" / "1"
    folder.mkdir(parents=True)
    with pytest.raises(StorageFull), promised_room(tmp_path, "job_1", need, 0):
        pass
    with (folder / "checkpoint").open("wb") as file:
        file.truncate(free)  # without blocks: the length counts
    with promised_room(tmp_path, "job_1", need, 0):
        pass


def test_some_bytes_stay_free_whatever_is_known_of_a_run(tmp_path: Path) -> None:
    most = shutil.disk_usage(tmp_path).free * 2
    with pytest.raises(StorageFull, match="must stay free"), promised_room(tmp_path, "job_1", None, most):
        pass


def test_promise_of_a_killed_supervisor_is_kept_by_nobody(tmp_path: Path) -> None:
    need = half(tmp_path)
    code = (
        "import sys; from pathlib import Path; from workers.room import promised_room\n"
        "with promised_room(Path(sys.argv[1]), 'job_1', int(sys.argv[2]), 0):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(need)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdin is not None
    with holder.stdout, holder.stdin:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageFull), promised_room(tmp_path, "job_2", need, 0):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    with promised_room(tmp_path, "job_2", need, 0):
        pass


def test_next_attempt_does_not_wait_for_the_lock_of_a_frozen_one(tmp_path: Path) -> None:
    with promised_room(tmp_path, "job_1", 1000, 0), promised_room(tmp_path, "job_1", 1000, 0):
        pass
