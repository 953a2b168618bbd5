"""The SDK against the real API, in process: no socket, no stand-in."""

import os
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from httpx2 import WSGITransport

from api.answers import answers
from api.app import create_app
from api.state import State
from foundry.client.client import Foundry
from foundry.errors import (
    IdempotencyConflict,
    JobFailed,
    NotFound,
    RequestFailed,
    StateConflict,
    Unauthorized,
    UserError,
)
from foundry.spec.lifecycle import JobEvent
from foundry.spec.report import JobReport
from foundry.spec.resources import Reason
from foundry.spec.variant import Artifact, Metrics
from foundry.store.settings import Settings
from tests.checkpoints import write_checkpoint
from tests.unit.client.worker import progress, publish, take

FILES = {
    "kiosk-q4_k_m.gguf": os.urandom(200_000),
    "safetensors/model.safetensors": os.urandom(50_000),
    "README.md": b"card",
}


@pytest.fixture
def state(tmp_path: Path, sqlite_url: str) -> Iterator[tuple[State, Any]]:
    app = create_app(Settings(home=tmp_path, database_url=sqlite_url, teacher_roots=(tmp_path,)))
    yield app.extensions["foundry"], app
    app.extensions["foundry"].database.close()


@pytest.fixture
def memory(state: tuple[State, Any]) -> State:
    return state[0]


@pytest.fixture
def foundry(state: tuple[State, Any]) -> Iterator[Foundry]:
    keys = state[0].keys
    _, key = keys.create(keys.ensure_default_project(), "test")
    with Foundry("http://foundry.test", key, transport=WSGITransport(app=state[1])) as client:
        yield client


@pytest.fixture
def spec(foundry: Foundry, tmp_path: Path) -> dict[str, Any]:
    """A job that the service takes."""
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "hello"}\n{"text": "world"}\n')
    return {
        "teacher": str(write_checkpoint(tmp_path / "teacher")),
        "data": foundry.datasets.upload(data).id,
        "targets": [{"name": "kiosk", "max_params": 20_000}],
    }


def test_dataset_is_uploaded_found_and_listed(foundry: Foundry, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\n<|endoftext|>\ntwo\n")
    made = foundry.datasets.upload(path, name="my notes")
    assert (made.name, made.format, made.documents) == ("my notes", "text", 2)
    assert made.sha256 == sha256(path.read_bytes()).hexdigest()
    assert foundry.datasets.get(made.id) == made and list(foundry.datasets.list()) == [made]


def test_dataset_is_refused_with_the_line_that_is_wrong(foundry: Foundry, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"text": }\n')
    with pytest.raises(UserError, match="line 2") as refused:
        foundry.datasets.upload(path)
    assert isinstance(refused.value, RequestFailed) and refused.value.problem["line"] == 2
    assert [p.pointer for p in refused.value.problems] == ["/data"] and not list(foundry.datasets.list())


def test_one_key_makes_one_dataset_and_no_other(foundry: Foundry, tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"text": "one"}\n')
    other.write_text('{"text": "other"}\n')
    assert foundry.datasets.upload(one, idempotency_key="k") == foundry.datasets.upload(one, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        foundry.datasets.upload(other, idempotency_key="k")


def test_targets_are_the_device_profiles(foundry: Foundry) -> None:
    assert {t.name: t.max_bytes for t in foundry.targets.list()}["smartphone"] == 2_750_000_000


def test_families_are_what_a_teacher_may_be(foundry: Foundry) -> None:
    found = {family.name: family for family in foundry.models.families()}
    assert found["mixtral"].has_experts and not found["llama"].has_experts
    assert "llama" in found["llama"].model_types


def test_estimate_says_what_a_job_would_give(foundry: Foundry, spec: dict[str, Any]) -> None:
    estimate = foundry.estimate(spec)
    assert estimate.family == "llama" and estimate.targets[0].parameters <= 20_000
    with pytest.raises(UserError) as refused:
        foundry.estimate({**spec, "targets": [{"name": "kiosk", "max_params": 10}]})
    assert isinstance(refused.value, RequestFailed) and refused.value.problem["smallest_params"] > 10


def test_an_evaluation_is_created_followed_and_deleted(foundry: Foundry, memory: State, tmp_path: Path) -> None:
    model = foundry.models.from_folder(str(write_checkpoint(tmp_path / "small")), "small")
    made = foundry.evaluations.create(model=model.id, tasks=["gsm8k"], idempotency_key="once")
    assert foundry.evaluations.create({"model": model.id, "tasks": ["gsm8k"]}, idempotency_key="once") == made
    assert foundry.evaluations.pause(made.id).status == "paused"
    assert [one.id for one in foundry.evaluations.list(status="paused")] == [made.id]
    foundry.evaluations.resume(made.id)
    result = {"held_out": [{"model": "small", "held_out_loss": 1.5}]}
    memory.jobs.succeed(take(memory.jobs, made.id), (), result)
    seen: list[JobEvent] = []
    done = foundry.evaluations.wait(made.id, progress=seen.append)
    assert done.result is not None and done.result.held_out[0].held_out_loss == 1.5
    assert seen == list(foundry.evaluations.events(made.id)) == list(foundry.evaluations.stream(made.id))
    foundry.evaluations.delete(made.id)
    with pytest.raises(NotFound):
        foundry.evaluations.get(made.id)
    with pytest.raises(UserError, match="did you mean gsm8k"):
        foundry.evaluations.create(model=model.id, tasks=["gsm8"])


def test_an_evaluation_that_was_cancelled_is_no_success(foundry: Foundry, tmp_path: Path) -> None:
    model = foundry.models.from_folder(str(write_checkpoint(tmp_path / "small")), "small")
    made = foundry.evaluations.create(model=model.id, suite="quick")
    assert foundry.evaluations.cancel(made.id).is_terminal
    with pytest.raises(JobFailed, match=f"evaluation {made.id} was cancelled"):
        foundry.evaluations.wait(made.id, progress=False)


def test_a_report_is_read_as_a_record_and_as_a_page(
    foundry: Foundry, memory: State, spec: dict[str, Any], tmp_path: Path
) -> None:
    job = foundry.jobs.create(spec)
    with pytest.raises(NotFound, match="no report"):
        foundry.jobs.report(job.id)
    report = JobReport.model_validate(answers()["JobReport"])
    files = []
    for form, content in (("json", report.model_dump_json()), ("html", "<!doctype html>"), ("md", "# mine")):
        staged = tmp_path / f"report.{form}"
        staged.write_text(content)
        blob = memory.artifacts.put(staged)
        files.append(Artifact(path=f"report/report.{form}", bytes=blob.bytes, sha256=blob.sha256))
    memory.jobs.keep_files(take(memory.jobs, job.id), "report", files)
    assert foundry.jobs.report(job.id) == report
    assert (foundry.jobs.report_text(job.id), foundry.jobs.report_text(job.id, "md")) == ("<!doctype html>", "# mine")


def test_job_is_created_listed_and_steered(foundry: Foundry, spec: dict[str, Any]) -> None:
    job = foundry.jobs.create(spec, idempotency_key="once")
    assert foundry.jobs.create(spec, idempotency_key="once").id == job.id
    other = foundry.jobs.create(**spec, name="other")
    assert [j.id for j in foundry.jobs.list()] == [other.id, job.id]
    assert [j.id for j in foundry.jobs.list(limit=1)] == [other.id]
    assert foundry.jobs.pause(job.id).status == "paused"
    assert [j.id for j in foundry.jobs.list(status="paused")] == [job.id]
    assert foundry.jobs.resume(job.id).status == "queued"
    assert foundry.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(StateConflict):
        foundry.jobs.resume(job.id)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"data": "ds_none"}, "/data"),
        ({"teacher": "/somewhere/else"}, "/teacher"),
        ({"targets": ["toaster"]}, "/targets/0"),
        ({"targets": [{"name": "kiosk", "max_params": 10}]}, "/targets/0"),
    ],
    ids=["no-dataset", "foreign-teacher", "unknown-target", "unreachable"],
)
def test_job_is_refused_with_the_field_that_is_wrong(
    foundry: Foundry, spec: dict[str, Any], change: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(UserError) as refused:
        foundry.jobs.create({**spec, **change})
    assert [p.pointer for p in refused.value.problems] == [pointer]
    assert isinstance(refused.value, RequestFailed) and refused.value.request_id
    assert not list(foundry.jobs.list())


def test_wrong_key_is_refused(state: tuple[State, Any]) -> None:
    with (
        Foundry("http://foundry.test", "fdy_no_key", transport=WSGITransport(app=state[1])) as stranger,
        pytest.raises(Unauthorized),
    ):
        list(stranger.jobs.list())


def test_wait_follows_the_work_and_download_brings_the_variant(
    foundry: Foundry, memory: State, spec: dict[str, Any], tmp_path: Path
) -> None:
    job = foundry.jobs.create(spec)
    seen = threading.Event()

    def work() -> None:
        claim = take(memory.jobs, job.id)
        memory.jobs.append(claim, [progress(1, 2)])
        assert seen.wait(10)
        memory.jobs.append(claim, [progress(2, 2)])
        publish(memory.jobs, memory.artifacts, claim, FILES, tmp_path)

    told: list[JobEvent] = []

    def watch(event: JobEvent) -> None:
        told.append(event)
        if event.type == "progress":
            seen.set()

    worker = threading.Thread(target=work)
    worker.start()
    done = foundry.jobs.wait(job.id, progress=watch, timeout=20)
    worker.join()
    assert [e.seq for e in told] == list(range(1, len(told) + 1))
    assert [e.type for e in told] == [
        "job.submitted", "job.started", "progress", "progress", "variant.published", "job.succeeded",
    ]  # fmt: skip
    assert [a.outcome for a in foundry.jobs.attempts(job.id)] == ["succeeded"]

    (variant,) = foundry.variants.list(job_id=job.id)
    assert (variant.id,) == done.variant_ids
    assert foundry.variants.manifest(variant.id).metrics[0].held_out_loss == 2.5
    home = foundry.variants.download(variant.id, tmp_path / "home", progress=False)
    assert {path: (home / path).read_bytes() for path in FILES} == FILES


def test_download_continues_a_partial_file_of_the_real_service(
    foundry: Foundry, memory: State, spec: dict[str, Any], tmp_path: Path
) -> None:
    job = foundry.jobs.create(spec)
    publish(memory.jobs, memory.artifacts, take(memory.jobs, job.id), FILES, tmp_path)
    (variant,) = foundry.variants.list(job_id=job.id)
    content = FILES["kiosk-q4_k_m.gguf"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "kiosk-q4_k_m.gguf.partial").write_bytes(content[:150_000])
    told: list[int] = []
    foundry.variants.download(variant.id, home, files=["*.gguf"], progress=lambda _, done, __: told.append(done))
    assert (home / "kiosk-q4_k_m.gguf").read_bytes() == content
    assert min(told) > 150_000  # the first part was not sent again
    with pytest.raises(NotFound, match="no file"):
        foundry.variants.download(variant.id, home, files=["other"], progress=False)


def test_wait_raises_the_reason_when_the_job_failed(foundry: Foundry, memory: State, spec: dict[str, Any]) -> None:
    job = foundry.jobs.create(spec)
    memory.jobs.fail(take(memory.jobs, job.id), Reason(code="diverged", message="the loss is no longer a number"))
    with pytest.raises(JobFailed, match="the loss is no longer a number") as failed:
        foundry.jobs.wait(job.id, progress=False)
    assert failed.value.reason_code == "diverged"


def test_a_measurement_is_kept_at_its_variant_and_judged(
    foundry: Foundry, memory: State, spec: dict[str, Any], tmp_path: Path
) -> None:
    job = foundry.jobs.create(spec)
    publish(memory.jobs, memory.artifacts, take(memory.jobs, job.id), FILES, tmp_path)
    (variant,) = foundry.variants.list(job_id=job.id)
    budget = foundry.variants.manifest(variant.id).budget
    metrics = Metrics(model=budget.format, file_bytes=250_000, hardware="a phone", runtime="x 1")
    sent = {"manifest_sha256": variant.manifest_sha256, "context_tokens": budget.context_tokens}
    kept = foundry.variants.add_measurement(variant.id, metrics, device="mine", **sent)  # type: ignore[arg-type]
    assert kept.fits_budget is not None and kept.metrics == metrics and kept.device == "mine"
    assert list(foundry.variants.measurements(variant.id)) == [kept]
    with pytest.raises(UserError, match="are not the files of"):
        foundry.variants.add_measurement(variant.id, metrics, manifest_sha256="0" * 64, context_tokens=64)
