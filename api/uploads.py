"""/v1/uploads: a file in parts, in any order, over as many connections as it takes."""

from typing import Annotated

from apiflask import APIBlueprint
from pydantic import Field

from api.auth import needs, project_id
from api.bodies import data_name, receive, require_digest, staging
from api.idempotency import CreateHeaders, idempotency
from api.openapi import raw_body
from api.pages import PageQuery
from api.records import Body, Input
from api.state import state
from foundry.intake.documents import summarise
from foundry.intake.inspection import inspect
from foundry.spec.access import Scope
from foundry.spec.library import Upload, UploadPart, UploadPurpose, UploadStatus
from foundry.spec.resources import Page
from foundry.store.records import Idempotency

uploads = APIBlueprint("uploads", __name__)
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class UploadBody(Body):
    """The file that is to come."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """For people; of a dataset the ending .jsonl, .parquet or .txt also says how the file is read."""
    purpose: UploadPurpose = "dataset"
    """What the whole file becomes: a dataset, or a file of a model to register."""
    bytes: Annotated[int, Field(ge=1, lt=2**53)]
    """Of the whole file."""
    sha256: Digest | None = None
    """Of the whole file; checked when it is completed, and what an interrupted client finds it by."""


class UploadsQuery(PageQuery):
    """A page of uploads."""

    status: UploadStatus | None = None
    """Only uploads that stand there."""
    sha256: Digest | None = None
    """Only uploads of this file."""


class PartHeaders(Input):
    """What may come with a part."""

    content_digest: Annotated[str, Field(max_length=1000)] | None = None
    """sha-256=:BASE64: of the part (RFC 9530); a part that is not that is refused."""


@uploads.post("/uploads")
@needs(Scope.DATASETS_WRITE)
@uploads.input(UploadBody)
@uploads.input(CreateHeaders, location="headers")
@uploads.output(Upload, 201)
@uploads.doc(responses=[400, 415])
def create(json_data: UploadBody, headers_data: CreateHeaders) -> Upload:
    """Announce a file. The answer says how long each part has to be; it waits seven days for them."""
    once = idempotency(headers_data, json_data.model_dump_json())
    wanted = json_data
    return state().uploads.create(project_id(), wanted.name, wanted.purpose, wanted.bytes, wanted.sha256, once)


@uploads.get("/uploads")
@needs(Scope.DATASETS_READ)
@uploads.input(UploadsQuery, location="query")
@uploads.output(Page[Upload])
def list_uploads(query_data: UploadsQuery) -> Page[Upload]:
    """The project's uploads, newest first."""
    query = query_data
    return state().uploads.list(project_id(), query.limit, query.after, query.status, query.sha256)


@uploads.get("/uploads/<upload_id>")
@needs(Scope.DATASETS_READ)
@uploads.output(Upload)
def get_upload(upload_id: str) -> Upload:
    """One upload with the parts that are missing."""
    return state().uploads.get(project_id(), upload_id)


@uploads.put("/uploads/<upload_id>/parts/<int:number>")
@needs(Scope.DATASETS_WRITE)
@uploads.input(PartHeaders, location="headers")
@uploads.output(UploadPart)
@uploads.doc(responses=[400, 409, 413, 507], extensions=raw_body(["application/octet-stream"]))
def put_part(upload_id: str, number: int, headers_data: PartHeaders) -> UploadPart:
    """Send one part, counted from 1, as the body. Sent again it replaces the one before."""
    upload = state().uploads.get(project_id(), upload_id)
    staged = state().uploads.staging(upload.id)
    try:
        found = receive(staged, upload.part_bytes, state().settings.upload_silence_s)
        require_digest(found, headers_data.content_digest)
        return state().uploads.put_part(project_id(), upload_id, number, staged, found)
    finally:
        staged.unlink(missing_ok=True)


@uploads.post("/uploads/<upload_id>/complete")
@needs(Scope.DATASETS_WRITE)
@uploads.output(Upload)
@uploads.doc(responses=[409, 507])
def complete(upload_id: str) -> Upload:
    """Put the parts together. Of a dataset every document is checked, and `dataset_id` says what it became.

    Asked again, the answer is the same. While something is wrong the upload stays open, and parts can be replaced.
    """
    upload = state().uploads.get(project_id(), upload_id)
    if upload.status == "completed":
        return upload
    with staging(state().settings) as folder:
        whole = folder / data_name(upload.name)
        blob = state().uploads.assemble(project_id(), upload_id, whole)
        if upload.purpose == "model_file":
            state().artifacts.put(whole, sha256=blob.sha256)
            return state().uploads.complete(project_id(), upload_id, blob.sha256)
        summary = summarise(whole)
        # No caller's key has a space, so this one is the upload's own: a repeat finds the dataset it made.
        once = Idempotency(key=f"upload {upload_id}", route="complete", body_sha256=blob.sha256)
        report = inspect(whole)
        dataset = state().datasets.create(project_id(), upload.name, whole, summary, once, report)
    return state().uploads.complete(project_id(), upload_id, blob.sha256, dataset.id)


@uploads.post("/uploads/<upload_id>/cancel")
@needs(Scope.DATASETS_WRITE)
@uploads.output(Upload)
@uploads.doc(responses=[409])
def cancel(upload_id: str) -> Upload:
    """End an upload and remove its parts."""
    return state().uploads.cancel(project_id(), upload_id)
