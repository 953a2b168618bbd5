"""`python -m workers.embedded`: the process, its signals, and what is left of it when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundry.spec.lifecycle import EventType, Status
from tests.integration.workers.works import ROOT, Works, is_alive, kill, running_worker, wait_until

pytestmark = pytest.mark.integration
WORKER = "workers.embedded"
LONG = "steps=2000 delay=0.02"


def test_worker_carries_out_what_is_queued_and_what_comes_later_and_logs_it_as_json(
    works: Works, tmp_path: Path
) -> None:
    job_id = works.submit()
    with running_worker(works, tmp_path / "log", WORKER):
        works.await_status(job_id, Status.SUCCEEDED)
        works.await_status(works.submit(), Status.SUCCEEDED)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    of_job = [line["event"] for line in lines if line.get("job_id") == job_id and line.get("attempt") == 1]
    assert of_job[:2] == ["claimed", "run started"] and "settled" in of_job
    assert lines[-1]["event"] == "worker stopped"


def test_sigterm_lets_the_run_write_a_checkpoint_and_puts_the_job_back(works: Works, tmp_path: Path) -> None:
    job_id = works.submit("steps=60 delay=0.02")
    with running_worker(works, tmp_path / "log", WORKER) as worker:
        works.await_checkpoint(job_id)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    assert works.job(job_id).status is Status.QUEUED
    assert works.outcomes(job_id) == ["released"]
    stopped_at = works.events(job_id, EventType.CHECKPOINT)[-1].data["step"]
    with running_worker(works, tmp_path / "log", WORKER):
        assert works.await_status(job_id, Status.SUCCEEDED).attempt == 2
    assert [event.data["first"] for event in works.events(job_id) if "first" in event.data] == [0, stopped_at]


def test_job_of_a_killed_worker_is_finished_by_another_when_the_lease_has_ended(works: Works, tmp_path: Path) -> None:
    works = Works(works.settings.database_url, works.settings.home, lease_s=1.5)
    job_id = works.submit("steps=60 delay=0.02")
    with running_worker(works, tmp_path / "log", WORKER) as worker:
        works.await_checkpoint(job_id)
        run = works.run_pid(job_id)
        kill(worker.pid)
        worker.wait()
    killed_at = time.monotonic()
    wait_until(lambda: not is_alive(run))
    assert works.job(job_id).status is Status.RUNNING  # nobody was left to say otherwise
    with running_worker(works, tmp_path / "log", WORKER):
        job = works.await_status(job_id, Status.SUCCEEDED)
    assert job.attempt == 2 and works.outcomes(job_id) == ["lost", "succeeded"]
    assert time.monotonic() - killed_at < 120  # what the service promises
    assert [event.data["first"] > 0 for event in works.events(job_id) if "first" in event.data] == [False, True]
    works.close()


def test_folder_of_a_job_that_ended_without_a_worker_is_swept(works: Works, tmp_path: Path) -> None:
    job_id = works.submit(LONG)
    thread = works.begin(job_id)
    works.await_checkpoint(job_id)
    works.jobs.pause(works.project_id, job_id)
    thread.join(20)
    works.jobs.cancel(works.project_id, job_id)
    folder = works.settings.work / job_id
    assert folder.exists()
    with running_worker(works, tmp_path / "log", WORKER):
        wait_until(lambda: not folder.exists())


def test_worker_does_not_start_without_a_migrated_database_and_says_how_to_get_one(tmp_path: Path) -> None:
    environment = os.environ | {"FOUNDRY_HOME": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-m", WORKER], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert answer.returncode == 1
    assert "alembic upgrade head" in answer.stderr and "Traceback" not in answer.stderr
