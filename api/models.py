"""/v1/models: teachers that a project has registered, and that a job names by id."""

import re
from typing import Annotated, Literal

from apiflask import APIBlueprint
from pydantic import Field, StringConstraints

from api.admission import open_teacher, require_hub
from api.auth import needs, project_id
from api.idempotency import CreateHeaders, idempotency
from api.pages import PageQuery, page_of
from api.records import Body
from api.state import state
from foundry.errors import InvalidData, UploadConflict
from foundry.intake.checkpoint import check_tokenizer, open_checkpoint
from foundry.spec.access import Scope
from foundry.spec.family import families
from foundry.spec.library import Model, ModelFamily, Upload
from foundry.spec.resources import Page
from foundry.store.ids import new_id
from foundry.store.records import Idempotency

models = APIBlueprint("models", __name__)
FileName = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,199}\.(safetensors|safetensors\.index\.json|json)|merges\.txt"
        r"|tokenizer\.model|chat_template\.jinja)$"
    ),
]
"""Weights as safetensors, configuration and tokenizer; nothing that holds code or pickles has a name here."""


class FolderSource(Body):
    """A folder that the operator allows."""

    kind: Literal["folder"]
    """A folder of the service."""
    path: Annotated[str, Field(min_length=1, max_length=1024)]
    """Absolute, or relative to a root that the operator allows."""


class HubSource(Body):
    """A model on the hub, pinned: what a name or a branch stands for there can change."""

    kind: Literal["hub"]
    """A model on the hub."""
    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$", max_length=200)]
    """ORG/NAME."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """The commit, 40 hexadecimal digits."""


class UploadSource(Body):
    """Files that were uploaded with the purpose `model_file`."""

    kind: Literal["upload"]
    """Files that were sent."""
    files: Annotated[dict[FileName, str], Field(min_length=1, max_length=1000)]
    """File name in the model's folder to upload id."""


class ModelBody(Body):
    """A teacher to register."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """For people."""
    source: Annotated[FolderSource | HubSource | UploadSource, Field(discriminator="kind")]
    """Where its files are."""


@models.post("/models")
@needs(Scope.MODELS_WRITE)
@models.input(ModelBody)
@models.input(CreateHeaders, location="headers")
@models.output(Model, 201)
@models.doc(responses=[400, 409, 415, 507])
def create(json_data: ModelBody, headers_data: CreateHeaders) -> Model:
    """Register a teacher. A folder or an upload is opened and checked, down to the place of every tensor."""
    return register(json_data, idempotency(headers_data, json_data.model_dump_json()))


def register(wanted: ModelBody, once: Idempotency | None) -> Model:
    """Open and check what is to be registered, and register it; the same request gets the same model."""
    if made := state().requests.made(project_id(), once):
        return state().models.get(project_id(), made)
    source, settings = wanted.source, state().settings
    write = state().models.register
    if isinstance(source, HubSource):
        require_hub(settings)
        return write(project_id(), wanted.name, "hub", f"{source.repository}@{source.revision}", None, once)
    if isinstance(source, FolderSource):
        checkpoint = open_teacher(source.path, settings)
        check_tokenizer(checkpoint.folder)
        return write(project_id(), wanted.name, "folder", str(checkpoint.folder), checkpoint, once)
    files = {name: _uploaded(name, upload_id) for name, upload_id in source.files.items()}
    model_id = new_id("mdl")
    folder = state().models.lay_out(model_id, files)
    try:
        checkpoint = open_checkpoint(folder)
        check_tokenizer(folder)
        names = ", ".join(sorted(files))
        model = write(project_id(), wanted.name, "upload", names, checkpoint, once, model_id=model_id, files=files)
    except BaseException:
        state().models.drop(model_id)
        raise
    if model.id != model_id:  # the same request was quicker
        state().models.drop(model_id)
    return model


def _uploaded(name: str, upload_id: str) -> Upload:
    upload = state().uploads.get(project_id(), upload_id)
    pointer = f"/source/files/{re.sub('~', '~0', name)}"
    if upload.purpose != "model_file":
        raise InvalidData(f"{upload_id} was uploaded as a {upload.purpose}, not as a model_file", pointer=pointer)
    if upload.status != "completed" or not state().artifacts.exists(upload.sha256 or ""):
        raise UploadConflict(f"{upload_id} ({name}) is {upload.status}; complete it first", pointer=pointer)
    return upload


@models.get("/models")
@needs(Scope.MODELS_READ)
@models.input(PageQuery, location="query")
@models.output(Page[Model])
def list_models(query_data: PageQuery) -> Page[Model]:
    """The project's models, newest first."""
    return state().models.list(project_id(), query_data.limit, query_data.after)


@models.get("/families")
@needs(Scope.MODELS_READ)
@models.input(PageQuery, location="query")
@models.output(Page[ModelFamily])
def list_families(query_data: PageQuery) -> Page[ModelFamily]:
    """The families that a teacher may be of, by name."""
    known = [
        ModelFamily(
            name=family.name, model_types=family.model_types, gguf_architecture=family.gguf_architecture,
            has_experts=family.find("router") is not None,
        )
        for _, family in sorted(families().items())
    ]  # fmt: skip
    return page_of(known, query_data, lambda family: family.name)


@models.get("/models/<model_id>")
@needs(Scope.MODELS_READ)
@models.output(Model)
def get_model(model_id: str) -> Model:
    """One model."""
    return state().models.get(project_id(), model_id)


@models.delete("/models/<model_id>")
@needs(Scope.MODELS_WRITE)
@models.output({}, 204)
@models.doc(responses=[409])
def delete(model_id: str) -> str:
    """Forget a model; uploaded files go, a folder stays. Refused with 409 while a job needs it."""
    state().removal.model(project_id(), model_id)
    return ""
