"""What the service says about its objects: the store makes these records, the API sends them, the SDK reads them."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import Progress, StageName, Status
from foundry.spec.record import CreatedAt, Id
from foundry.spec.variant import Artifact


class Resource(BaseModel):
    """Frozen, but tolerant of new fields: an older SDK must be able to read a newer service."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Reason(Resource):
    """Why a job is in its status, for people (`message`) and for programs (`code`)."""

    code: str
    """A word that stays the same, such as out_of_memory."""
    message: str
    """A sentence that says what happened."""


DataFormat = Literal["jsonl", "text", "parquet"]


class Dataset(Resource):
    """Uploaded data. Immutable; the digest is of the bytes as sent."""

    id: Id
    name: str
    """For people; its ending said how the file is read."""
    format: DataFormat
    """How the file was read."""
    bytes: int
    """Of the file."""
    sha256: str
    """64 hexadecimal digits."""
    documents: int
    """Of both sides: those trained on and those held out."""
    created_at: CreatedAt


class Job(Resource):
    """A customization job."""

    id: Id
    name: str
    """For people, from the spec; may be empty."""
    status: Status
    """Where it stands."""
    is_terminal: bool
    """Whether it has ended: its status will not change."""
    status_reason: Reason | None = None
    """Why it failed, or why it was paused without being asked to; else null."""
    spec: JobSpec
    """What was asked for, with all defaults and the project's own targets written out."""
    stage: StageName | None = None
    """The stage that was begun last; null before the first."""
    progress: Progress | None = None
    """How far that stage is; null until it has told."""
    attempt: int
    """How many times a worker has claimed the job."""
    parent_id: str | None = None
    """The job that this one repeats or was cloned from."""
    variant_ids: tuple[str, ...] = ()
    """What came out, oldest first; empty until the job has succeeded."""
    queue_position: int | None = None
    """1 is next. Null unless the job is queued, and when more than 1,000 jobs are. Also null in the answer to a submit,
    which does not count the queue so as to be quick: ask for the job."""
    expected_start_at: datetime | None = None
    """When a worker would take a queued job if every run took as long as the latest did; None where none is known."""
    created_at: CreatedAt
    started_at: datetime | None = None
    """When a worker first claimed it; null before."""
    finished_at: datetime | None = None
    """When it ended; null until then."""


class Attempt(Resource):
    """One claim of a job by a worker."""

    attempt: int
    """Counted from 1."""
    worker: str
    """The name of the worker that claimed it."""
    started_at: datetime
    """When it was claimed."""
    ended_at: datetime | None = None
    """When the worker let go or was given up; null while it runs."""
    outcome: str | None = None
    """succeeded, failed, cancelled, paused, released or lost; None while it runs."""
    message: str | None = None
    """How it ended, in words; null while it runs."""


class JobCheckpoint(Resource):
    """A resumable state that an attempt wrote. It lies with the worker; what ships is a variant."""

    seq: int
    """Of the event that told of it."""
    attempt: int
    """The attempt that wrote it."""
    stage: str | None = None
    """The stage that it belongs to."""
    step: int | None = None
    """Steps of the stage that are done in it; null where a stage has none."""
    created_at: CreatedAt


class JobMetrics(Resource):
    """Figures that the run reported at one moment."""

    seq: int
    """Of the event that carried them."""
    attempt: int
    """The attempt that measured them."""
    created_at: CreatedAt
    stage: str | None = None
    """The stage that they were measured in."""
    step: int | None = None
    """Steps that were done then; null for figures of no step."""
    steps: int | None = None
    """Of the whole stage, as planned then; null like `step`."""
    values: dict[str, float]
    """By name, with the unit in it; losses in nats per token."""


class Variant(Resource):
    """A finished, verified, downloadable model for one target."""

    id: Id
    job_id: str
    """The job that made it."""
    target: str
    """The target that it was made for."""
    parameters: int
    """Without those of an adapter beside the weights."""
    fits_budget: bool
    """Whether its file, KV cache and, where known, memory and speed are within the target's budget."""
    bytes: int
    """All files together."""
    manifest_sha256: str
    """Of the bytes of manifest.json, 64 hexadecimal digits; the manifest has the digest of every other file."""
    files: tuple[Artifact, ...]
    """Every file, manifest.json included."""
    created_at: CreatedAt


class VariantLineage(Resource):
    """From which teacher, data and job a variant came, by their ids where the service knows them and by digest."""

    variant_id: str
    """The variant that this is about."""
    job_id: str
    """The job that made it."""
    parent_job_ids: tuple[str, ...] = ()
    """The jobs that this job repeats or was cloned from, the nearest first."""
    teacher: str
    """As the spec of the job names it."""
    model_id: str | None = None
    """The registered model, when the job named one."""
    teacher_sha256: str
    """Digest over name, size and digest of every weight file of the teacher."""
    dataset_id: str | None = None
    """None when the dataset has been deleted since."""
    data_sha256: str
    """Of the dataset's bytes as sent."""
    versions: dict[str, str]
    """Library name to the version that made it."""
    aliases: tuple[str, ...] = ()
    """Names that point to this variant now."""


class Target(Resource):
    """A device profile of the service, or a device that the project described itself."""

    name: str
    """What `targets` of a job names."""
    description: str
    """For people; may be empty in a target of the project's own."""
    custom: bool = False
    """Whether the project described it; such a target can be changed and deleted."""
    memory_bytes: int | None = None
    """What the model's process may take."""
    max_bytes: int | None = None
    """What of that is left for the file and the KV cache."""
    max_params: int | None = None
    """Instead of bytes, in a target of the project's own."""
    memory_bandwidth_bytes_per_s: int | None = None
    """Bytes that it reads from its memory in a second; null where it is not known."""
    compute_ops_per_s: int | None = None
    """Of the unit that the runtime computes with, in the type that it multiplies in; a multiply-add is two."""
    context_tokens: int
    """Length of the text whose KV cache has to fit; a teacher with less counts with its own."""
    minimum_tokens_per_s: int | None = None
    """Tokens written in a second; slower than this is of no use on the device. Null asks for none."""
    runtime: str | None = None
    """What runs the model there; null in a target of the project's own."""
    format: str | None = None
    """What the runtime opens first; None leaves it to the job."""
    formats: tuple[str, ...] = ()
    """Everything that runtimes of such devices open; empty in a target of the project's own."""
    sources: tuple[dict[str, Any], ...] = ()
    """Where every figure of a profile comes from: figure, kind, source, url, checked_on; empty in a target of the
    project's own."""


T = TypeVar("T")


class Page(Resource, Generic[T]):
    """One page of a list."""

    data: tuple[T, ...]
    """The items."""
    has_more: bool
    """Whether another page follows."""
    next: str | None = None
    """The `after` of the following page; null on the last."""
