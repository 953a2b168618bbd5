"""The main job through real processes: submit, run, be killed, resume, publish, download, answer."""

import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foundry.client.client import Foundry
from foundry.engine.export.apart import LLAMACPP, ask
from foundry.engine.export.runtime import Questions
from foundry.errors import JobFailed
from foundry.spec.lifecycle import EventType, Status
from foundry.spec.resources import Job
from foundry.spec.variant import VariantManifest
from tests.acceptance.services import running, runs_under, service, spec, wait_until, write_data
from tests.servers import Postgres, Redis

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]
PROMPTS = ("def read_file(path):\n    ", "class Queue:\n    ", "Return the number of ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def foundry(folder: Path) -> Iterator[Foundry]:
    with service(folder) as client:
        yield client


@pytest.fixture(scope="module")
def dataset_id(foundry: Foundry, folder: Path) -> str:
    return foundry.datasets.upload(write_data(folder)).id


@pytest.fixture(scope="module")
def undisturbed(foundry: Foundry, dataset_id: str) -> Job:
    return foundry.jobs.wait(foundry.jobs.create(spec(dataset_id)).id, progress=False, timeout=300)


def _manifests(foundry: Foundry, job: Job) -> dict[str, VariantManifest]:
    found = (VariantManifest.model_validate(foundry.variants.manifest(v)) for v in job.variant_ids)
    return {manifest.target: manifest for manifest in found}


def _digests(manifest: VariantManifest) -> dict[str, str]:
    return {f.path: f.sha256 for f in manifest.files if f.path.endswith((".safetensors", ".gguf"))}


def test_job_gives_one_verified_variant_per_target(foundry: Foundry, undisturbed: Job) -> None:
    assert undisturbed.status is Status.SUCCEEDED and undisturbed.attempt == 1
    manifests = _manifests(foundry, undisturbed)
    assert set(manifests) == {"tablet", "watch"}
    for manifest in manifests.values():
        assert manifest.fits_budget and not manifest.failed_formats
        assert manifest.budget.max_params is not None and manifest.parameters <= manifest.budget.max_params
        assert {f.format for f in manifest.files if f.format} == {"safetensors", "gguf:f16", "gguf:q4_k_m"}
        losses = {m.model: m.held_out_loss for m in manifest.metrics}
        assert losses["teacher"] < losses["distilled"] < losses["pruned"]


def test_events_are_gap_free_and_name_every_stage(foundry: Foundry, undisturbed: Job) -> None:
    events = list(foundry.jobs.events(undisturbed.id))
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert events[0].type is EventType.SUBMITTED and events[-1].type is EventType.SUCCEEDED
    completed = [e.data["stage"] for e in events if e.type is EventType.STAGE_COMPLETED]
    assert completed == ["prune", "distill", "evaluate", "export"]


def test_downloaded_gguf_continues_like_transformers_at_f16(foundry: Foundry, undisturbed: Job, tmp_path: Path) -> None:
    variant_id = undisturbed.variant_ids[0]
    out = foundry.variants.download(variant_id, tmp_path / "variant")
    manifest = VariantManifest.model_validate_json((out / "manifest.json").read_text())
    for artifact in manifest.files:
        assert hashlib.sha256((out / artifact.path).read_bytes()).hexdigest() == artifact.sha256
    tokenizer = AutoTokenizer.from_pretrained(out / "safetensors")
    model = AutoModelForCausalLM.from_pretrained(out / "safetensors", dtype=torch.float32)
    (gguf,) = (f.path for f in manifest.files if f.format == "gguf:f16")
    prompts = [tokenizer(p)["input_ids"] for p in PROMPTS]
    questions = Questions(model=str(out / gguf), prompts=prompts, continue_tokens=32)
    answers = ask(LLAMACPP, questions)
    for prompt, continuation in zip(prompts, answers.continuations, strict=True):
        ids = torch.tensor([prompt])
        greedy = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        assert continuation.tokens == greedy[0, len(prompt) :].tolist()


def test_killed_run_resumes_and_ends_with_the_same_weights(
    foundry: Foundry, dataset_id: str, undisturbed: Job, folder: Path
) -> None:
    job = foundry.jobs.create(spec(dataset_id))
    for event in foundry.jobs.events(job.id):
        if event.type is EventType.CHECKPOINT:
            break
    (run,) = runs_under(folder)
    run.kill()
    finished = foundry.jobs.wait(job.id, progress=False, timeout=300)
    assert finished.attempt == 2
    outcomes = [attempt.outcome for attempt in foundry.jobs.attempts(job.id)]
    assert sorted(outcomes) == ["lost", "succeeded"]  # type: ignore[type-var]
    before, after = _manifests(foundry, undisturbed), _manifests(foundry, finished)
    for target, manifest in after.items():
        assert manifest.training["distill"]["steps"] == before[target].training["distill"]["steps"]
        assert _digests(manifest) == _digests(before[target])


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
    optional: dict[str, Any] = {"lora": {"rank": 4, "tokens": 4096}, "correct": {"tokens": 4096, "rank": 4}}
    changed = spec(
        dataset_id, targets=[{"name": "watch", "max_params": 3_700_000}], formats=["safetensors"], **optional
    )
    job = foundry.jobs.wait(foundry.jobs.create(changed).id, progress=False, timeout=300)
    manifest = _manifests(foundry, job)["watch"]
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
            changed = spec(dataset.id, targets=[{"name": "watch", "max_params": 3_700_000}])
            job = client.jobs.wait(client.jobs.create(changed).id, progress=False, timeout=300)
            assert job.status is Status.SUCCEEDED and len(job.variant_ids) == 1
            attempts = list(client.jobs.attempts(job.id))
            assert [a.outcome for a in attempts] == ["succeeded"]
