"""Datasets: a row and its bytes, once for each request."""

from pathlib import Path

import pytest
from sqlalchemy import func, select

from foundry.errors import ArtifactDamaged, IdempotencyConflict, NotFound
from foundry.store.artifacts import LocalArtifacts
from foundry.store.database import Database
from foundry.store.datasets import Datasets
from foundry.store.tables import DatasetRow
from tests import factories

ROUTE = "POST /v1/datasets"


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "artifacts")


@pytest.fixture
def datasets(database: Database, artifacts: LocalArtifacts) -> Datasets:
    return Datasets(database, artifacts)


def test_create_keeps_the_bytes_and_what_they_are(datasets: Datasets, project_id: str, tmp_path: Path) -> None:
    path, summary = factories.data_file(tmp_path)
    dataset = datasets.create(project_id, "mine", path, summary)
    assert (dataset.name, dataset.format, dataset.documents) == ("mine", "jsonl", 1)
    assert (dataset.bytes, dataset.sha256) == (summary.bytes, summary.sha256)
    assert datasets.get(project_id, dataset.id) == dataset
    assert datasets.file(project_id, dataset.id).read_bytes() == path.read_bytes()


def test_create_returns_the_earlier_dataset_when_the_key_is_used_again(
    datasets: Datasets, project_id: str, tmp_path: Path
) -> None:
    path, summary = factories.data_file(tmp_path)
    request = factories.request(route=ROUTE)
    first = datasets.create(project_id, "mine", path, summary, request)
    assert datasets.create(project_id, "mine", path, summary, request) == first
    assert len(datasets.list(project_id).data) == 1


def test_create_leaves_neither_row_nor_file_when_the_key_belongs_to_another_request(
    datasets: Datasets, artifacts: LocalArtifacts, project_id: str, tmp_path: Path
) -> None:
    path, summary = factories.data_file(tmp_path)
    datasets.create(project_id, "mine", path, summary, factories.request(route=ROUTE))
    path, other = factories.data_file(tmp_path, '{"text": "another"}\n')
    with pytest.raises(IdempotencyConflict):
        datasets.create(project_id, "mine", path, other, factories.request(route=ROUTE, body=b"other"))
    assert not artifacts.exists(other.sha256)
    assert len(datasets.list(project_id).data) == 1


def test_create_leaves_neither_row_nor_file_when_the_file_changed_after_it_was_checked(
    datasets: Datasets, database: Database, project_id: str, tmp_path: Path
) -> None:
    path, summary = factories.data_file(tmp_path)
    path.write_text("something else")
    with pytest.raises(ArtifactDamaged):
        datasets.create(project_id, "mine", path, summary)
    with database.read() as session:
        assert session.scalars(select(func.count()).select_from(DatasetRow)).one() == 0
    assert not list((tmp_path / "artifacts").rglob("*/*/*"))


def test_dataset_of_another_project_is_not_found(
    datasets: Datasets, database: Database, project_id: str, tmp_path: Path
) -> None:
    dataset = datasets.create(project_id, "mine", *factories.data_file(tmp_path))
    other = factories.project(database, "other")
    for method in (datasets.get, datasets.file):
        with pytest.raises(NotFound, match=dataset.id):
            method(other, dataset.id)
    assert datasets.list(other).data == ()


def test_list_is_newest_first_page_by_page(datasets: Datasets, project_id: str, tmp_path: Path) -> None:
    path, summary = factories.data_file(tmp_path)
    ids = [datasets.create(project_id, name, path, summary).id for name in "abc"]
    first = datasets.list(project_id, limit=2)
    rest = datasets.list(project_id, limit=2, after=first.next)
    assert [d.id for d in (*first.data, *rest.data)] == ids[::-1]
    assert (first.has_more, rest.has_more) == (True, False)
