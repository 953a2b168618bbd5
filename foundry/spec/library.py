"""What a project keeps: uploads, what was found in its data, models, aliases."""

from datetime import datetime
from typing import Literal

from foundry.spec.record import CreatedAt, Id
from foundry.spec.resources import Resource
from foundry.spec.weights import Shape

UploadPurpose = Literal["dataset", "model_file"]
UploadStatus = Literal["open", "completed", "cancelled", "expired"]


class UploadPart(Resource):
    """One part that has arrived whole."""

    number: int
    """Counted from 1."""
    bytes: int
    """Of this part."""
    sha256: str
    """Of the bytes that arrived, 64 hexadecimal digits."""


class Upload(Resource):
    """A file that arrives in parts, in any order, over as many connections and days as it takes."""

    id: Id
    name: str
    """As announced; a dataset gets it too."""
    purpose: UploadPurpose
    """What the whole file becomes: a dataset, or a file of a model to register."""
    status: UploadStatus
    """open takes parts; completed, cancelled and expired have ended."""
    bytes: int
    """Of the whole file, as announced."""
    sha256: str | None = None
    """Of the whole file: as announced, or as found when it was completed."""
    part_bytes: int
    """Of every part but the last."""
    parts: int
    """How many there are, counted from 1."""
    received_bytes: int
    """Of the parts that have arrived whole."""
    missing_parts: tuple[int, ...]
    """The first thousand numbers that have not arrived."""
    dataset_id: str | None = None
    """What a completed upload with the purpose `dataset` became."""
    created_at: CreatedAt
    expires_at: datetime
    """An upload that is still open then ends, and its parts are removed."""


class DatasetReport(Resource):
    """What was found when every document of a dataset was read."""

    dataset_id: str
    """The dataset that was read."""
    documents: int
    """Of all kinds, duplicates among them."""
    text_documents: int
    """With plain text."""
    completion_documents: int
    """With prompt and completion."""
    chat_documents: int
    """With messages."""
    characters: int
    """Of all texts of all documents together."""
    longest_characters: int
    """Of the longest document."""
    duplicate_documents: int
    """Documents whose id or content was there before; of a very large file, among the first million."""
    held_out_documents: int
    """Kept apart for evaluation; no stage trains on them."""
    warnings: tuple[str, ...]
    """What may harm a job, in words; empty where nothing was found."""


class DatasetRow(Resource):
    """One document for people to look at, cut to `characters`."""

    number: int
    """Counted from 1."""
    key: str
    """Its id, else the digest of its content."""
    held_out: bool
    """Whether it is kept apart for evaluation."""
    text: str | None = None
    """Of a document of plain text, else null."""
    prompt: str | None = None
    """Of a document with prompt and completion, else null."""
    completion: str | None = None
    """What is learned as the answer to `prompt`."""
    messages: tuple[dict[str, str], ...] | None = None
    """Of a chat, each with `role` and `content`; else null."""
    is_cut: bool
    """Whether something is longer than what is shown."""


class Model(Resource):
    """A teacher that the project has registered; a job names it by its id."""

    id: Id
    name: str
    """For people."""
    kind: Literal["folder", "hub", "upload"]
    """Where its files are: a folder of the service, the hub, or uploads."""
    source: str
    """A folder of the service, or ORG/NAME@REVISION; for an upload the names of its files."""
    family: str | None = None
    """None for a model on the hub: it is opened by the run."""
    shape: Shape | None = None
    """As its config.json says; null for a model on the hub."""
    parameters: int | None = None
    """Null for a model on the hub."""
    context_tokens: int | None = None
    """The longest text that it was made for; null for a model on the hub, or where its config.json does not say."""
    bytes: int | None = None
    """Kept by the service for an upload; None otherwise."""
    created_at: CreatedAt


class ModelFamily(Resource):
    """Models that share weight names; a teacher must be of one of these."""

    name: str
    """As records of models and variants say it."""
    model_types: tuple[str, ...]
    """What `model_type` of a teacher's config.json may be."""
    gguf_architecture: str
    """As llama.cpp calls it."""
    has_experts: bool
    """Whether `experts` is among the axes that can be cut."""


class Alias(Resource):
    """A name that points to a variant and can be moved to another: what a device fetches stays one address."""

    name: str
    """1 to 64 of a-z, 0-9, dot, dash and underscore; once in a project."""
    variant_id: str
    """The variant that it points to now."""
    updated_at: datetime
    """When it was last pointed somewhere."""
