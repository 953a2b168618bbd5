"""Rows and constraints of keys, data, jobs and variants; project_tables.py has the rest.

Times are seconds since 1970 by the database's own clock; ids are made by `ids.new_id`.
"""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from foundry.spec.lifecycle import Status, WorkKind
from foundry.store import project_tables as project_tables  # so that Row.metadata is whole wherever this is imported
from foundry.store.rows import Json
from foundry.store.rows import Row as Row


class ProjectRow(Row):
    """A tenant."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    quota: Mapped[Any] = mapped_column(Json, default=dict)
    created_at: Mapped[float]
    last_claim_at: Mapped[float | None]
    """When a worker last took a job of the project: of projects with equally many runs the longest waiting is next."""


class ApiKeyRow(Row):
    """Who may act for a project. The key itself is not kept, only its HMAC."""

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project_id", "id"), Index(None, "member_id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    digest: Mapped[str]
    scopes: Mapped[Any] = mapped_column(Json)
    member_id: Mapped[str | None]
    """No foreign key: a key outlives its member, revoked, so that the audit stays readable."""
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    last_used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class DatasetRow(Row):
    """Uploaded data; the bytes are the artifact `sha256`."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    format: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    documents: Mapped[int]
    report: Mapped[Any | None] = mapped_column(Json)
    """What was found when it was read; None for one that was uploaded before there were reports."""
    created_at: Mapped[float]


class JobRow(Row):
    """A job or an evaluation. `transition.py` alone sets `status`; `epoch` fences every write of a run."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(repr(s.value) for s in Status)})", name="status_known"),
        CheckConstraint(
            "(lease_until IS NOT NULL) = (status IN ('running', 'pausing', 'cancelling'))", name="lease_while_held"
        ),
        Index(None, "project_id", "kind", "id"),
        Index(None, "project_id", "kind", "status", "id"),
        Index(None, "project_id", "status", "priority", "created_at"),
        Index(None, "status", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str] = mapped_column(default=WorkKind.JOB.value, server_default=WorkKind.JOB.value)
    name: Mapped[str]
    status: Mapped[str]
    reason_code: Mapped[str | None]
    reason_message: Mapped[str | None]
    spec: Mapped[Any] = mapped_column(Json)
    inputs: Mapped[Any] = mapped_column(Json)
    stage: Mapped[str | None]
    progress: Mapped[Any | None] = mapped_column(Json)
    epoch: Mapped[int]
    """How many times the job was claimed; 0 before the first."""
    fruitless_attempts: Mapped[int]
    """Attempts lost one after the other without a new checkpoint or a finished stage."""
    halvings: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often the micro-batch was halved because a run had ended out of memory."""
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """Among the project's own jobs; the higher goes first."""
    memory_bytes: Mapped[int | None]
    """What the estimate says that a run needs at least; None where nobody knows."""
    worker: Mapped[str | None]
    lease_until: Mapped[float | None]
    last_seq: Mapped[int]
    parent_id: Mapped[str | None]
    """The job that this one repeats; no foreign key, for the parent may be deleted."""
    result: Mapped[Any | None] = mapped_column(Json)
    """What an evaluation has found so far; what comes of a job are variants."""
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class JobFileRow(Row):
    """One file that a job left beside its variants, such as its report; the bytes are the artifact `sha256`."""

    __tablename__ = "job_files"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)


class AttemptRow(Row):
    """One claim of a job."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None]
    message: Mapped[str | None]
    progressed: Mapped[bool]


class EventRow(Row):
    """One line of a job's history. `seq` counts from 1 without a gap: it is taken under the lock of the job's row."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "type", "seq"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str]
    attempt: Mapped[int]
    type: Mapped[str]
    level: Mapped[str]
    created_at: Mapped[float]
    message: Mapped[str]
    data: Mapped[Any] = mapped_column(Json)


class VariantRow(Row):
    """A finished model for one target. manifest.json is the artifact `manifest_sha256`."""

    __tablename__ = "variants"
    __table_args__ = (UniqueConstraint("job_id", "target"), Index(None, "project_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    target: Mapped[str]
    parameters: Mapped[int]
    fits_budget: Mapped[bool]
    bytes: Mapped[int]
    manifest_sha256: Mapped[str]
    created_at: Mapped[float]


class VariantFileRow(Row):
    """One file of a variant; the bytes are the artifact `sha256`."""

    __tablename__ = "variant_files"

    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    sha256: Mapped[str]
    format: Mapped[str | None]


class MeasurementRow(Row):
    """What a variant did on a device."""

    __tablename__ = "measurements"
    __table_args__ = (Index(None, "variant_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"))
    device: Mapped[str | None]
    target: Mapped[str]
    context_tokens: Mapped[int]
    metrics: Mapped[Any] = mapped_column(Json)
    fits_budget: Mapped[bool | None]
    over_budget: Mapped[Any] = mapped_column(Json)
    key_id: Mapped[str | None]
    """The key that it came with; no foreign key, for it tells of a request and not of a key."""
    created_at: Mapped[float]


class IdempotencyRow(Row):
    """What one idempotency key made, written in the same transaction as the thing itself."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str]
    body_sha256: Mapped[str]
    object_id: Mapped[str]
    created_at: Mapped[float]
