"""Evaluations in a real run of the engine, and reports of jobs that end in every way."""

import json
from pathlib import Path

import pytest

from foundry.engine.export.manifest import artifacts_in
from foundry.engine.workspace import write_json
from foundry.intake.documents import summarise
from foundry.spec.evaluation import EvaluationSpec
from foundry.spec.lifecycle import EventType, Status
from foundry.spec.report import JobReport
from foundry.spec.variant import Artifact
from foundry.store.evaluations import Evaluations
from foundry.store.job_files import JobFiles
from foundry.store.records import EvaluationInputs, ModelPlace
from tests import manifests, tiny
from tests.integration.workers.works import Works
from workers.supervisor import RUN, Supervisor

pytestmark = pytest.mark.integration


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ARC as its authors publish it, with a few made-up questions, where the operator keeps benchmarks."""
    folder = tmp_path / "benchmarks"
    (folder / "ARC-Challenge").mkdir(parents=True)
    for split, count in (("Train", 30), ("Test", 5)):
        choices = [{"text": "the cat", "label": "A"}, {"text": "red", "label": "B"}]
        rows = [
            {"id": str(n), "answerKey": "AB"[n % 2], "question": {"stem": tiny.sentence(n, 1), "choices": choices}}
            for n in range(count)
        ]
        path = folder / "ARC-Challenge" / f"ARC-Challenge-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("FOUNDRY_BENCHMARKS", str(folder))
    return folder


def kept_variant(works: Works, folder: Path) -> ModelPlace:
    """A variant's files in the artifact store, as the API hands them to a worker."""
    tiny.save(folder / "safetensors", tiny.new_model(seed=7))
    write_json(folder / "manifest.json", manifests.manifest("kiosk", artifacts_in(folder)).model_dump(mode="json"))
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = works.artifacts.put(path)
        files.append(Artifact(path=path.relative_to(folder).as_posix(), bytes=blob.bytes, sha256=blob.sha256))
    return ModelPlace(id="var_1", name="mine", files=tuple(files))


def test_a_variant_is_measured_on_data_and_in_benchmarks_and_what_is_missing_is_said(
    works: Works, benchmarks: Path, tmp_path: Path
) -> None:
    text = tiny.write_texts(tmp_path / "domain.jsonl", 80)
    dataset = works.datasets.create(works.project_id, "domain", text, summarise(text))
    spec = EvaluationSpec(model="var_1", tasks=("arc_challenge", "gsm8k"), limit=3, data=dataset.id)
    inputs = EvaluationInputs(
        model=kept_variant(works, tmp_path / "variant"), dataset_id=dataset.id, data_sha256=dataset.sha256
    )
    evaluations = Evaluations(works.database)
    made = evaluations.submit(works.project_id, spec, inputs)
    supervisor = Supervisor(
        works.settings, works.jobs, works.datasets, works.artifacts, stopping=works.stopping, command=RUN
    )
    supervisor.run(works.claim(made.id))
    found = evaluations.get(works.project_id, made.id)
    assert found.status is Status.SUCCEEDED and found.result is not None and found.result.benchmarks is not None
    arc, gsm8k = found.result.benchmarks.tasks
    assert (arc.status, arc.examples, arc.metric) == ("done", 3, "acc_norm") and arc.standard_error is not None
    assert gsm8k.status == "missing" and "gsm8k_test.jsonl" in gsm8k.note
    [row] = found.result.held_out
    assert row.model == "mine" and row.held_out_loss is not None and "held_out_loss" in row.intervals
    events = evaluations.events(works.project_id, made.id)
    assert [event.data["step"] for event in events if event.type is EventType.CHECKPOINT] == [1, 2]
    assert not (works.settings.work / made.id).exists()


def report_of(works: Works, job_id: str) -> JobReport:
    path, _ = JobFiles(works.database, works.artifacts).report(works.project_id, job_id, "json")
    return JobReport.model_validate_json(path.read_bytes())


@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [("end=user_error", "failed", "line 3: not JSON"), ("end=crash", "failed", "on fire")],
)
def test_the_report_of_a_job_that_failed_outlives_its_folder(
    works: Works, behaviour: str, status: str, reason: str
) -> None:
    job = works.submit(behaviour)
    while not works.carry_out(job).is_terminal:  # a crash is tried again, up to a bound
        pass
    assert not (works.settings.work / job).exists()
    report = report_of(works, job)
    assert report.status == status and reason in (report.reason or "")


def test_the_report_of_a_cancelled_job_says_so(works: Works) -> None:
    job = works.submit("steps=2000 delay=0.02")
    thread = works.begin(job)
    works.await_checkpoint(job)
    works.jobs.cancel(works.project_id, job)
    thread.join()
    assert works.job(job).status is Status.CANCELLED
    assert report_of(works, job).status == "cancelled"
