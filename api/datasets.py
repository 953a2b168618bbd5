"""/v1/datasets: data, uploaded once and used in many jobs."""

from typing import Annotated

from apiflask import APIBlueprint
from pydantic import Field

from api.auth import project_id
from api.idempotency import CreateHeaders, idempotency
from api.openapi import raw_body
from api.pages import PageQuery
from api.records import Input
from api.state import state
from api.uploads import MEDIA_TYPES, received_body
from foundry.intake.documents import summarise
from foundry.spec.resources import Dataset, Page

datasets = APIBlueprint("datasets", __name__)


class NewDataset(Input):
    """What an upload says beside its bytes."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """For people; the ending .jsonl or .txt also says how the file is read."""


@datasets.post("/datasets")
@datasets.input(NewDataset, location="query")
@datasets.input(CreateHeaders, location="headers")
@datasets.output(Dataset, 201)
@datasets.doc(responses=[400, 413, 415, 507], extensions=raw_body(MEDIA_TYPES))
def create(query_data: NewDataset, headers_data: CreateHeaders) -> Dataset:
    """Upload a JSON Lines or text file as the request's body.

    Every document is checked before anything is kept; the answer names the line that is wrong.
    """
    with received_body(state().settings, query_data.name) as file:
        summary = summarise(file)
        once = idempotency(headers_data, query_data.name, summary.sha256)
        return state().datasets.create(project_id(), query_data.name, file, summary, once)


@datasets.get("/datasets")
@datasets.input(PageQuery, location="query")
@datasets.output(Page[Dataset])
def list_datasets(query_data: PageQuery) -> Page[Dataset]:
    """The project's datasets, newest first."""
    return state().datasets.list(project_id(), query_data.limit, query_data.after)


@datasets.get("/datasets/<dataset_id>")
@datasets.output(Dataset)
def get_dataset(dataset_id: str) -> Dataset:
    """One dataset."""
    return state().datasets.get(project_id(), dataset_id)
