"""Rows and constraints. Times are seconds since 1970 by the database's own clock; ids are made by `ids.new_id`."""

import json
import math
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, MetaData, Text, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from foundry.spec.lifecycle import Status


class Words(TypeDecorator[str]):
    """Text from outside. PostgreSQL refuses NUL and lone surrogates: both become U+FFFD, on every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\0", "�").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Json(TypeDecorator[Any]):
    """A document as ASCII text, kept alike by every database. NaN and infinity, unknown to JSON, become null."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


class Row(DeclarativeBase):
    """The base of every table. Constraints have names so that a migration can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Words, int: BigInteger, float: Double}  # noqa: RUF012 - SQLAlchemy reads it so


class ProjectRow(Row):
    """A tenant."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[float]


class ApiKeyRow(Row):
    """Who may act for a project. The key itself is not kept, only its HMAC."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    digest: Mapped[str]
    created_at: Mapped[float]
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
    created_at: Mapped[float]


class JobRow(Row):
    """A job as it stands. `transition.py` alone sets `status`; `epoch` fences every write of a run."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({', '.join(repr(s.value) for s in Status)})", name="status_known"),
        CheckConstraint(
            "(lease_until IS NOT NULL) = (status IN ('running', 'pausing', 'cancelling'))", name="lease_while_held"
        ),
        Index(None, "project_id", "id"),
        Index(None, "status", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
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
    worker: Mapped[str | None]
    lease_until: Mapped[float | None]
    last_seq: Mapped[int]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


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


class IdempotencyRow(Row):
    """What one idempotency key made, written in the same transaction as the thing itself."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str]
    body_sha256: Mapped[str]
    object_id: Mapped[str]
    created_at: Mapped[float]
