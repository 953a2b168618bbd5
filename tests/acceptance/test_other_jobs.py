"""Jobs that are cancelled, that have every optional stage, and that go through a broker: in real processes."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foundry.client.client import Foundry
from foundry.errors import JobFailed
from foundry.spec.lifecycle import EventType, Status
from tests.acceptance.services import (
    WATCH,
    manifests_of,
    running,
    runs_under,
    service,
    spec,
    wait_until,
    write_data,
)
from tests.servers import Postgres, Redis

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]
BRIEF: dict[str, Any] = {"tokens": 1024, "sequence_tokens": 128, "batch_tokens": 256}
"""Distillation where nothing is asked of what was learned."""


def test_cancel_frees_the_worker_for_the_next_job(foundry: Foundry, dataset_id: str, folder: Path) -> None:
    job = foundry.jobs.create(spec(dataset_id, distill={"tokens": 10_000_000}))
    for event in foundry.jobs.events(job.id):
        if event.type is EventType.STAGE_STARTED:
            break
    foundry.jobs.cancel(job.id)
    with pytest.raises(JobFailed, match="cancelled"):
        foundry.jobs.wait(job.id, progress=False, timeout=60)
    assert foundry.jobs.get(job.id).status is Status.CANCELLED
    deadline = time.monotonic() + 10
    while runs_under(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs_under(folder)


def test_optional_stages_merge_an_adapter_and_a_corrected_teacher_row(foundry: Foundry, dataset_id: str) -> None:
    optional: dict[str, Any] = {"lora": {"rank": 4, "tokens": 1024}, "correct": {"tokens": 1024, "rank": 4}}
    changed = spec(dataset_id, targets=[WATCH], formats=["safetensors"], distill=BRIEF, **optional)
    job = foundry.jobs.wait(foundry.jobs.create(changed).id, progress=False, timeout=900)
    manifest = manifests_of(foundry, job)["watch"]
    assert "lora" in {m.model for m in manifest.metrics}
    assert not any(f.path.startswith("adapter/") for f in manifest.files)  # it is in the weights


def test_job_walks_through_celery_redis_and_postgresql(tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    environment = {
        "FOUNDRY_DATABASE_URL": postgres.new_database(),
        "FOUNDRY_BROKER_URL": redis_server.url,
        "FOUNDRY_HOME": str(tmp_path / "home"),
    }
    worker = ["-m", "celery", "-A", "workers.app", "worker", "--concurrency", "1", "--loglevel", "INFO"]
    with service(tmp_path, "--no-worker", environment=environment) as client:
        log = tmp_path / "celery.log"
        with running([sys.executable, *worker], log, environment) as process:
            wait_until(lambda: "ready" in log.read_text(errors="replace"), process, log)
            dataset = client.datasets.upload(write_data(tmp_path))
            changed = spec(dataset.id, targets=[WATCH], formats=["gguf:q4_k_m"], distill=BRIEF)
            job = client.jobs.wait(client.jobs.create(changed).id, progress=False, timeout=900)
            assert job.status is Status.SUCCEEDED and len(job.variant_ids) == 1
            attempts = list(client.jobs.attempts(job.id))
            assert [a.outcome for a in attempts] == ["succeeded"]
