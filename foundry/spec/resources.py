"""What the service says about its objects: the store makes these records, the API sends them, the SDK reads them."""

from datetime import datetime
from typing import Any, Generic, TypeVar

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


class Dataset(Resource):
    """Uploaded data. Immutable; the digest is of the bytes as sent."""

    id: str
    name: str
    format: str
    """jsonl or text."""
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
    variant_ids: tuple[str, ...] = ()
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


class Target(Resource):
    """A device profile as the service lists it."""

    name: str
    description: str
    memory_bytes: int
    """What the model's process may take."""
    max_bytes: int
    """What of that is left for the file and the KV cache."""
    memory_bandwidth_bytes_per_s: int
    compute_ops_per_s: int
    """Of the unit that the runtime computes with, in the type that it multiplies in; a multiply-add is two."""
    context_tokens: int
    minimum_tokens_per_s: int
    runtime: str
    format: str
    """What the runtime opens first."""
    formats: tuple[str, ...]
    sources: tuple[dict[str, Any], ...]


T = TypeVar("T")


class Page(Resource, Generic[T]):
    """One page of a list. `next` is the `after` of the following page, None on the last."""

    data: tuple[T, ...]
    has_more: bool
    next: str | None = None
