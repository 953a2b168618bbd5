"""What the service says about its objects: the store makes these records, the API sends them, the SDK reads them."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import Progress, StageName, Status
from foundry.spec.variant import Artifact


class Resource(BaseModel):
    """Frozen, but tolerant of new fields: an older SDK must be able to read a newer service."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Reason(Resource):
    """Why a job is in its status, for people (`message`) and for programs (`code`)."""

    code: str
    message: str


DataFormat = Literal["jsonl", "text", "parquet"]


class Dataset(Resource):
    """Uploaded data. Immutable; the digest is of the bytes as sent."""

    id: str
    name: str
    format: DataFormat
    bytes: int
    sha256: str
    documents: int
    created_at: datetime


class Job(Resource):
    """A customization job."""

    id: str
    name: str
    status: Status
    is_terminal: bool
    status_reason: Reason | None = None
    spec: JobSpec
    stage: StageName | None = None
    progress: Progress | None = None
    attempt: int
    """How many times a worker has claimed the job."""
    parent_id: str | None = None
    """The job that this one repeats or was cloned from."""
    variant_ids: tuple[str, ...] = ()
    queue_position: int | None = None
    """1 is next. Null unless the job is queued, and when more than 1,000 jobs are. Also null in the answer to a submit,
    which does not count the queue so as to be quick: ask for the job."""
    expected_start_at: datetime | None = None
    """When a worker would take a queued job if every run took as long as the latest did; None where none is known."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Attempt(Resource):
    """One claim of a job by a worker."""

    attempt: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    """succeeded, failed, cancelled, paused, released or lost; None while it runs."""
    message: str | None = None


class JobCheckpoint(Resource):
    """A resumable state that an attempt wrote. It lies with the worker; what ships is a variant."""

    seq: int
    """Of the event that told of it."""
    attempt: int
    stage: str | None = None
    step: int | None = None
    created_at: datetime


class JobMetrics(Resource):
    """Figures that the run reported at one moment."""

    seq: int
    attempt: int
    created_at: datetime
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    values: dict[str, float]
    """By name, with the unit in it; losses in nats per token."""


class Variant(Resource):
    """A finished, verified, downloadable model for one target."""

    id: str
    job_id: str
    target: str
    parameters: int
    fits_budget: bool
    bytes: int
    """All files together."""
    manifest_sha256: str
    files: tuple[Artifact, ...]
    """Every file, manifest.json included."""
    created_at: datetime


class VariantLineage(Resource):
    """From which teacher, data and job a variant came, by their ids where the service knows them and by digest."""

    variant_id: str
    job_id: str
    parent_job_ids: tuple[str, ...] = ()
    """The jobs that this job repeats or was cloned from, the nearest first."""
    teacher: str
    model_id: str | None = None
    """The registered model, when the job named one."""
    teacher_sha256: str
    dataset_id: str | None = None
    """None when the dataset has been deleted since."""
    data_sha256: str
    versions: dict[str, str]
    aliases: tuple[str, ...] = ()
    """Names that point to this variant now."""


class Target(Resource):
    """A device profile of the service, or a device that the project described itself."""

    name: str
    description: str
    custom: bool = False
    """Whether the project described it; such a target can be changed and deleted."""
    memory_bytes: int | None = None
    """What the model's process may take."""
    max_bytes: int | None = None
    """What of that is left for the file and the KV cache."""
    max_params: int | None = None
    """Instead of bytes, in a target of the project's own."""
    memory_bandwidth_bytes_per_s: int | None = None
    compute_ops_per_s: int | None = None
    """Of the unit that the runtime computes with, in the type that it multiplies in; a multiply-add is two."""
    context_tokens: int
    minimum_tokens_per_s: int | None = None
    runtime: str | None = None
    format: str | None = None
    """What the runtime opens first; None leaves it to the job."""
    formats: tuple[str, ...] = ()
    sources: tuple[dict[str, Any], ...] = ()


T = TypeVar("T")


class Page(Resource, Generic[T]):
    """One page of a list."""

    data: tuple[T, ...]
    has_more: bool
    next: str | None = None
    """The `after` of the following page; null on the last."""
