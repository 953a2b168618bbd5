"""Datasets: upload, what was found in them, and their documents to look at."""

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from api.auth import needs, project_id
from api.bodies import data_name, staging
from api.console.forms import headers
from api.console.frame import is_fragment, refused
from api.datasets import NewDataset, PreviewQuery, keep, rows_of
from api.pages import PageQuery
from api.state import state
from foundry.errors import FieldProblem, FoundryError, InvalidSpec
from foundry.spec.access import Scope
from foundry.spec.record import parse
from foundry.store.artifacts import storage_errors

datasets = Blueprint("datasets", __name__)
_FORM_BYTES = 2**16
"""What a form takes beside its file."""


@datasets.get("/datasets")
@needs(Scope.DATASETS_READ)
def list_datasets() -> str:
    """The project's datasets, newest first, and the form that adds one."""
    return _list()


@datasets.before_app_request
def _allow_a_file() -> None:
    """Before anything reads the form: a dataset may be as large as the API takes it."""
    if request.endpoint == "datasets.create":
        request.max_content_length = state().settings.max_upload_bytes + _FORM_BYTES


@datasets.post("/datasets")
@needs(Scope.DATASETS_WRITE)
def create() -> AnyResponse | tuple[str, int]:
    """Upload a file; every document is checked before anything is kept."""
    try:
        sent = request.files.get("file")
        if sent is None or not sent.filename:
            raise InvalidSpec(
                [FieldProblem(pointer="/file", code="missing", detail="choose a .jsonl, .parquet or .txt file")]
            )
        name = parse(NewDataset, {"name": request.form.get("name", "").strip() or sent.filename}).name
        with staging(state().settings) as folder:
            path = folder / data_name(name)
            with storage_errors(folder):
                sent.save(path)
            dataset = keep(path, name, headers())
    except FoundryError as error:
        return refused(error, _list)
    where = url_for("datasets.get_dataset", dataset_id=dataset.id)
    if is_fragment():
        return AnyResponse(status=204, headers={"X-Location": where})
    return redirect(where, 303)


@datasets.get("/datasets/<dataset_id>")
@needs(Scope.DATASETS_READ)
def get_dataset(dataset_id: str) -> str:
    """One dataset: what was found in it, and its documents."""
    memory, project = state(), project_id()
    dataset = memory.datasets.get(project, dataset_id)
    query = parse(PreviewQuery, {"limit": 10} | request.args.to_dict(), prefix="/query")
    rows = rows_of(dataset_id, query)
    return render_template(
        "dataset.html",
        dataset=dataset,
        report=memory.datasets.report(project, dataset_id),
        rows=rows,
        after=query.after,
    )


@datasets.post("/datasets/<dataset_id>/delete")
@needs(Scope.DATASETS_WRITE)
def delete(dataset_id: str) -> AnyResponse:
    """Delete a dataset."""
    state().removal.dataset(project_id(), dataset_id)
    flash("The dataset is deleted; its bytes go within two hours when nothing else holds them.")
    return redirect(url_for("datasets.list_datasets"), 303)


def _list() -> str:
    query = parse(PageQuery, request.args.to_dict(), prefix="/query")
    page = state().datasets.list(project_id(), query.limit, query.after)
    return render_template("datasets.html", page=page, after=query.after, most_bytes=state().settings.max_upload_bytes)
