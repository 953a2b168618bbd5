"""A small, seeded sample of the kill matrix (`make test-chaos`): two workers, several jobs, runs and workers killed and
frozen at random moments. The judge is the matrix's own."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from foundry.spec.lifecycle import EventType, Status
from tests.chaos.invariants import damaged_blobs, violations
from tests.integration.workers.works import ROOT, Works, wait_until

pytestmark = pytest.mark.integration
SEED = 7
FAULTS = ("kill run", "kill worker", "freeze worker", "drop connections")


@pytest.fixture
def works(postgres_url: str, tmp_path: Path) -> Iterator[Works]:
    """An installation on PostgreSQL with short times."""
    works = Works(postgres_url, tmp_path / "home", lease_s=2.4, heartbeat_s=0.4, max_attempts=20)
    yield works
    works.close()


class Workers:
    """Two workers that are started again when they die, as any operator's init does."""

    def __init__(self, works: Works, folder: Path) -> None:
        self._works, self._folder = works, folder
        self._running: list[subprocess.Popen[bytes]] = []

    def keep_two(self) -> None:
        self._running = [worker for worker in self._running if worker.poll() is None]
        while len(self._running) < 2:
            with (self._folder / "log").open("ab") as log:
                self._running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "workers.embedded"], cwd=ROOT, stdout=log, stderr=log,
                        env={**self._works.environment(), "FOUNDRY_MAX_ATTEMPTS": "20"}, stdin=subprocess.DEVNULL,
                    )
                )  # fmt: skip

    def any(self, chance: random.Random) -> subprocess.Popen[bytes]:
        return chance.choice(self._running)

    def runs(self) -> list[psutil.Process]:
        found = []
        for worker in self._running:
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(worker.pid).children()
        return found

    def close(self) -> None:
        for worker in self._running:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self._running:
            worker.wait(30)


def test_no_promise_is_broken_when_runs_and_workers_are_killed_and_frozen(
    works: Works, tmp_path: Path, postgres: object
) -> None:
    chance = random.Random(SEED)
    jobs = [works.submit("steps=60 delay=0.05") for _ in range(4)]
    workers = Workers(works, tmp_path)
    frozen: list[subprocess.Popen[bytes]] = []
    try:
        workers.keep_two()
        for fault in FAULTS:
            before = total(works)
            wait_until(lambda before=before: bool(workers.runs()) and total(works) > before + chance.randint(1, 6))
            if fault == "kill run":
                chance.choice(workers.runs()).kill()
            elif fault == "drop connections":
                postgres.drop_connections()  # type: ignore[attr-defined]
            else:
                worker = workers.any(chance)
                worker.send_signal(signal.SIGKILL if fault == "kill worker" else signal.SIGSTOP)
                frozen += [worker] if fault == "freeze worker" else []
                if fault == "kill worker":
                    worker.wait()
            workers.keep_two()
        for worker in frozen:
            worker.send_signal(signal.SIGCONT)  # by now another attempt has its job
        for job_id in jobs:
            works.await_status(job_id, Status.SUCCEEDED)
        with works.database.read() as session:
            assert violations(session.connection(), jobs) == []
            assert damaged_blobs(session.connection(), works.settings.artifacts) == []
        assert sum(len(works.events(job_id, EventType.ATTEMPT_LOST)) for job_id in jobs) >= 1  # it was no idle test
    finally:
        workers.close()


def total(works: Works) -> int:
    """How much has been said by all runs together."""
    with works.database.read() as session:
        return int(session.execute(text("SELECT count(*) FROM events")).scalar_one())


def test_the_judge_sees_every_kind_of_broken_promise(works: Works) -> None:
    """A judge who never finds anything would pass everything."""
    job_id = works.submit()
    assert works.carry_out(job_id).status == "succeeded"
    broken = {
        "seq has a gap": "DELETE FROM events WHERE seq = 4",
        "was written by attempt 7": "UPDATE events SET attempt = 7 WHERE type = 'stage.completed'",
        "published 1 times for the targets []": "DELETE FROM variant_files; DELETE FROM variants",
        "there is no such job": "SELECT 1",
        "the row says epoch 2": "UPDATE jobs SET epoch = 2",
        "starts after job.paused": "UPDATE events SET type = 'job.paused' WHERE type = 'job.submitted'",
    }
    for words, sql in broken.items():
        with works.database.read() as session:
            connection = session.connection()
            for statement in sql.split(";"):
                connection.execute(text(statement))
            found = violations(connection, [job_id, "job_that_never_was"])
            session.rollback()
        assert any(words in line for line in found), (words, found)
