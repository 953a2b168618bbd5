"""Work folders: taken over by renaming, swept when their jobs have ended."""

from pathlib import Path

import pytest

from foundry.store.artifacts import LocalArtifacts
from foundry.store.database import Database
from foundry.store.datasets import Datasets
from foundry.store.records import Claim
from tests import factories
from workers import folders
from workers.process import run_environment


@pytest.fixture
def datasets(sqlite_url: str, tmp_path: Path) -> Datasets:
    return Datasets(Database(sqlite_url), LocalArtifacts(tmp_path / "artifacts"))


@pytest.fixture
def claims(datasets: Datasets, sqlite_url: str, tmp_path: Path) -> list[Claim]:
    """Four attempts of one job."""
    project_id = factories.project(Database(sqlite_url))
    dataset = datasets.create(project_id, "mine", *factories.data_file(tmp_path))
    inputs = factories.inputs(dataset_id=dataset.id, data_sha256=dataset.sha256)
    return [
        Claim(job_id="job_1", project_id=project_id, epoch=epoch, spec=factories.spec(), inputs=inputs, worker="w")
        for epoch in range(1, 5)
    ]


def test_workspace_holds_the_spec_and_the_data_as_they_were_submitted(
    datasets: Datasets, claims: list[Claim], tmp_path: Path
) -> None:
    workspace = folders.prepare(tmp_path / "work", claims[0], datasets)
    assert workspace.root == tmp_path / "work" / "job_1" / "1"
    assert workspace.spec == claims[0].spec
    assert workspace.inputs.teacher == "/teachers/tiny"
    assert Path(workspace.inputs.data).suffix == ".jsonl"
    assert Path(workspace.inputs.data).read_text() == '{"text": "a document"}\n'


def test_next_attempt_finds_everything_that_the_last_one_left(
    datasets: Datasets, claims: list[Claim], tmp_path: Path
) -> None:
    first = folders.prepare(tmp_path / "work", claims[0], datasets)
    first.finish("prune", kept=3)
    third = folders.prepare(tmp_path / "work", claims[2], datasets)  # the second never came so far
    assert third.result("prune") == {"kept": 3}
    assert third.inputs == first.__class__(third.root).inputs
    assert not first.root.exists()


def test_folder_that_an_old_run_made_again_is_not_taken_for_the_newest(
    datasets: Datasets, claims: list[Claim], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    first = folders.prepare(work, claims[0], datasets)
    second = folders.prepare(work, claims[1], datasets)
    second.finish("prune", by="second")
    first.finish("prune", by="a zombie")  # its path was renamed away, so it makes a new folder
    third = folders.prepare(work, claims[2], datasets)
    assert third.result("prune") == {"by": "second"}
    assert sorted(path.name for path in (work / "job_1").iterdir()) == ["3", "data.jsonl"]


def test_data_stays_at_one_path_through_all_attempts(datasets: Datasets, claims: list[Claim], tmp_path: Path) -> None:
    paths = {folders.prepare(tmp_path / "work", claim, datasets).inputs.data for claim in claims}
    assert len(paths) == 1


def test_sweep_removes_the_folders_of_ended_jobs_alone(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert folders.sweep(work, lambda ids: ids) == []
    for job_id in ("job_ended", "job_running"):
        (work / job_id / "1").mkdir(parents=True)
    assert folders.sweep(work, lambda ids: {"job_ended"}) == ["job_ended"]
    assert [path.name for path in work.iterdir()] == ["job_running"]


def test_environment_of_a_run_is_an_allow_list() -> None:
    ours = {
        "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "FOUNDRY_DATABASE_URL": "postgresql://u:p@h/d",
        "FOUNDRY_BROKER_URL": "redis://:p@h", "SECRET_TOKEN": "x", "HF_TOKEN": "x", "HTTPS_PROXY": "http://u:p@proxy",
    }  # fmt: skip
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    assert run_environment(ours, hub=False) == kept | {"HF_HUB_OFFLINE": "1"}
    assert run_environment(ours, hub=True) == kept | {"HF_TOKEN": "x", "HTTPS_PROXY": "http://u:p@proxy"}
