"""What a project keeps: uploads, what was found in its data, models, aliases."""

from datetime import datetime
from typing import Literal

from foundry.spec.resources import Resource
from foundry.spec.weights import Shape

UploadPurpose = Literal["dataset", "model_file"]
UploadStatus = Literal["open", "completed", "cancelled", "expired"]


class UploadPart(Resource):
    """One part that has arrived whole."""

    number: int
    """Counted from 1."""
    bytes: int
    sha256: str


class Upload(Resource):
    """A file that arrives in parts, in any order, over as many connections and days as it takes."""

    id: str
    name: str
    purpose: UploadPurpose
    status: UploadStatus
    bytes: int
    """Of the whole file, as announced."""
    sha256: str | None = None
    """Of the whole file: as announced, or as found when it was completed."""
    part_bytes: int
    """Of every part but the last."""
    parts: int
    received_bytes: int
    missing_parts: tuple[int, ...]
    """The first thousand numbers that have not arrived."""
    dataset_id: str | None = None
    """What a completed upload with the purpose `dataset` became."""
    created_at: datetime
    expires_at: datetime


class DatasetReport(Resource):
    """What was found when every document of a dataset was read."""

    dataset_id: str
    documents: int
    text_documents: int
    completion_documents: int
    """With prompt and completion."""
    chat_documents: int
    characters: int
    longest_characters: int
    duplicate_documents: int
    """Documents whose id or content was there before; of a very large file, among the first million."""
    held_out_documents: int
    """Kept apart for evaluation; no stage trains on them."""
    warnings: tuple[str, ...]


class DatasetRow(Resource):
    """One document for people to look at, cut to `characters`."""

    number: int
    """Counted from 1."""
    key: str
    """Its id, else the digest of its content."""
    held_out: bool
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    is_cut: bool
    """Whether something is longer than what is shown."""


class Model(Resource):
    """A teacher that the project has registered; a job names it by its id."""

    id: str
    name: str
    kind: Literal["folder", "hub", "upload"]
    source: str
    """A folder of the service, or ORG/NAME@REVISION; for an upload the names of its files."""
    family: str | None = None
    """None for a model on the hub: it is opened by the run."""
    shape: Shape | None = None
    parameters: int | None = None
    context_tokens: int | None = None
    bytes: int | None = None
    """Kept by the service for an upload; None otherwise."""
    created_at: datetime


class ModelFamily(Resource):
    """Models that share weight names; a teacher must be of one of these."""

    name: str
    model_types: tuple[str, ...]
    """What `model_type` of a teacher's config.json may be."""
    gguf_architecture: str
    """As llama.cpp calls it."""
    has_experts: bool
    """Whether `experts` is among the axes that can be cut."""


class Alias(Resource):
    """A name that points to a variant and can be moved to another: what a device fetches stays one address."""

    name: str
    variant_id: str
    updated_at: datetime
