"""/v1/datasets: data, uploaded once and used in many jobs."""

from pathlib import Path
from typing import Annotated

from apiflask import APIBlueprint
from pydantic import Field

from api.auth import needs, project_id
from api.bodies import MEDIA_TYPES, received_body
from api.idempotency import CreateHeaders, idempotency
from api.openapi import raw_body
from api.pages import NumberedQuery, PageQuery
from api.records import Input
from api.state import state
from foundry.intake.documents import summarise
from foundry.intake.inspection import inspect, preview
from foundry.spec.access import Scope
from foundry.spec.library import DatasetReport, DatasetRow
from foundry.spec.resources import Dataset, Page

datasets = APIBlueprint("datasets", __name__)


class NewDataset(Input):
    """What an upload says beside its bytes."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """For people; the ending .jsonl, .parquet or .txt also says how the file is read."""


class PreviewQuery(NumberedQuery):
    """Which documents, and how much of each."""

    characters: Annotated[int, Field(ge=1, le=20_000)] = 1000
    """The most characters of each text."""


@datasets.post("/datasets")
@needs(Scope.DATASETS_WRITE)
@datasets.input(NewDataset, location="query")
@datasets.input(CreateHeaders, location="headers")
@datasets.output(Dataset, 201)
@datasets.doc(responses=[400, 413, 415, 507], extensions=raw_body(MEDIA_TYPES))
def create(query_data: NewDataset, headers_data: CreateHeaders) -> Dataset:
    """Upload a JSON Lines, Parquet or text file as the request's body; /v1/uploads takes one in parts.

    Parquet has columns of the names that a line of JSON Lines has. Every document is checked before anything is kept;
    the answer names the `line` that is wrong; a row of Parquet that is wrong is named in `detail`, without a `line`.
    """
    with received_body(state().settings, query_data.name) as file:
        return keep(file, query_data.name, headers_data)


def keep(file: Path, name: str, headers: CreateHeaders) -> Dataset:
    """Read every document of a staged file and make a dataset of it; raise `InvalidData` that names line or row."""
    summary = summarise(file)
    once = idempotency(headers, name, summary.sha256)
    return state().datasets.create(project_id(), name, file, summary, once, inspect(file))


@datasets.get("/datasets")
@needs(Scope.DATASETS_READ)
@datasets.input(PageQuery, location="query")
@datasets.output(Page[Dataset])
def list_datasets(query_data: PageQuery) -> Page[Dataset]:
    """The project's datasets, newest first."""
    return state().datasets.list(project_id(), query_data.limit, query_data.after)


@datasets.get("/datasets/<dataset_id>")
@needs(Scope.DATASETS_READ)
@datasets.output(Dataset)
def get_dataset(dataset_id: str) -> Dataset:
    """One dataset."""
    return state().datasets.get(project_id(), dataset_id)


@datasets.get("/datasets/<dataset_id>/validation")
@needs(Scope.DATASETS_READ)
@datasets.output(DatasetReport)
def get_report(dataset_id: str) -> DatasetReport:
    """What was found when every document was read: kinds, sizes, duplicates, warnings."""
    return state().datasets.report(project_id(), dataset_id)


@datasets.get("/datasets/<dataset_id>/preview")
@needs(Scope.DATASETS_READ)
@datasets.input(PreviewQuery, location="query")
@datasets.output(Page[DatasetRow])
def get_preview(dataset_id: str, query_data: PreviewQuery) -> Page[DatasetRow]:
    """Documents in their order, as a job would read them."""
    return rows_of(dataset_id, query_data)


def rows_of(dataset_id: str, query: PreviewQuery) -> Page[DatasetRow]:
    """Some documents of a dataset of the caller's project."""
    dataset = state().datasets.get(project_id(), dataset_id)
    file = state().datasets.file(project_id(), dataset_id)
    rows = preview(file, query.after, query.limit, query.characters)
    has_more = bool(rows) and rows[-1].number < dataset.documents
    return Page(data=tuple(rows), has_more=has_more, next=str(rows[-1].number) if has_more else None)


@datasets.delete("/datasets/<dataset_id>")
@needs(Scope.DATASETS_WRITE)
@datasets.output({}, 204)
@datasets.doc(responses=[409])
def delete(dataset_id: str) -> str:
    """Delete a dataset; its bytes go within two hours when nothing else holds them.

    Refused with 409 while a job that has not ended needs it.
    """
    state().removal.dataset(project_id(), dataset_id)
    return ""
