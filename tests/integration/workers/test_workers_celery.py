"""`celery -A workers.app worker` with a real Redis and a real PostgreSQL: the broker may lose what it likes."""

import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

import pytest

from api.queue import ring
from foundry.spec.lifecycle import EventType, Status
from tests.integration.workers.works import Works, running_worker, wait_until
from tests.servers import Postgres, Redis

pytestmark = pytest.mark.integration
LONG = "steps=2000 delay=0.02"


@pytest.fixture
def works(postgres_url: str, tmp_path: Path) -> Iterator[Works]:
    """An installation on PostgreSQL; a lease is short, so that the reconcile loop looks every second."""
    works = Works(postgres_url, tmp_path / "home", lease_s=3.0)
    yield works
    works.close()


def celery(works: Works, log: Path, redis: Redis, pool: str = "threads") -> AbstractContextManager[Popen[bytes]]:
    command = ("celery", "-A", "workers.app", "worker", "--pool", pool, "--concurrency", "1", "--without-mingle")
    return running_worker(works, log, *command, FOUNDRY_BROKER_URL=redis.url)


@pytest.mark.parametrize("pool", ["threads", "processes"])  # "prefork" would be the default that the app overrides
def test_worker_carries_out_jobs_rung_before_and_after_it_started_and_releases_its_job_on_sigterm(
    works: Works, tmp_path: Path, redis_server: Redis, pool: str
) -> None:
    before = works.submit()
    for _ in range(3):  # a ring too many is harmless
        ring(redis_server.url, before)
    with celery(works, tmp_path / "log", redis_server, pool) as worker:
        works.await_status(before, Status.SUCCEEDED)
        after = works.submit(LONG)
        ring(redis_server.url, after)
        works.await_checkpoint(after)
        worker.send_signal(signal.SIGTERM)
        worker.wait(20)
    assert works.job(after).status is Status.QUEUED
    assert (works.outcomes(before), works.outcomes(after)) == (["succeeded"], ["released"])
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_jobs_submitted_while_redis_is_away_are_carried_out_all_the_same(
    works: Works, tmp_path: Path, redis_server: Redis
) -> None:
    with celery(works, tmp_path / "log", redis_server):
        first = works.submit("steps=40 delay=0.02")
        ring(redis_server.url, first)
        works.await_checkpoint(first)
        redis_server.stop()
        next_up = works.submit()
        ring(redis_server.url, next_up)  # nobody hears it, and nothing is raised
        works.await_status(first, Status.SUCCEEDED)  # a running job does not need the broker
        works.await_status(next_up, Status.SUCCEEDED)  # nor does a worker that goes on to the next
        time.sleep(1)  # by now it has looked for another job and found none
        lost = works.submit()
        ring(redis_server.url, lost)
        redis_server.start()  # empty: it kept nothing, so only the reconcile loop can ring
        works.await_status(lost, Status.SUCCEEDED)
    assert works.outcomes(first) == works.outcomes(next_up) == works.outcomes(lost) == ["succeeded"]


def test_running_job_survives_a_restart_of_the_database(
    works: Works, tmp_path: Path, redis_server: Redis, postgres: Postgres
) -> None:
    job_id = works.submit("steps=50 delay=0.02")
    ring(redis_server.url, job_id)
    with celery(works, tmp_path / "log", redis_server):
        works.await_checkpoint(job_id)
        postgres.drop_connections()
        wait_until(lambda: _answers(works))
        works.await_status(job_id, Status.SUCCEEDED)
    assert works.outcomes(job_id) == ["succeeded"]
    events = works.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [e.data["step"] for e in works.events(job_id, EventType.CHECKPOINT)] == list(range(5, 51, 5))


def test_worker_does_not_start_without_a_broker_and_names_the_way_out(works: Works, tmp_path: Path) -> None:
    command = ("celery", "-A", "workers.app", "worker")
    with running_worker(works, tmp_path / "log", *command, FOUNDRY_BROKER_URL="") as worker:
        assert worker.wait(30) != 0
    assert "python -m workers.embedded" in (tmp_path / "log").read_text()


def _answers(works: Works) -> bool:
    try:
        works.database.ping()
    except Exception:
        return False
    return True
