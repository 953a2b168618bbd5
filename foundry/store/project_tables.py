"""Rows of what a project has beside data, jobs and variants: members, uploads, models, targets, aliases, webhooks."""

from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from foundry.store.rows import Json, Row


class MemberRow(Row):
    """A person or service with keys of its own."""

    __tablename__ = "members"
    __table_args__ = (UniqueConstraint("project_id", "name"), Index(None, "project_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[float]


class AuditRow(Row):
    """One write. No foreign keys: it outlives what it tells of."""

    __tablename__ = "audit_events"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    action: Mapped[str]
    object_id: Mapped[str | None]
    key_id: Mapped[str]
    member_id: Mapped[str | None]
    request_id: Mapped[str]
    address: Mapped[str | None]
    created_at: Mapped[float]


class UploadRow(Row):
    """A file on its way. Its parts lie in the artifact folder under uploads/ID until it is completed."""

    __tablename__ = "uploads"
    __table_args__ = (
        Index(None, "project_id", "id"), Index(None, "project_id", "sha256"), Index(None, "status", "expires_at"),
    )  # fmt: skip

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    purpose: Mapped[str]
    status: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str | None]
    part_bytes: Mapped[int]
    dataset_id: Mapped[str | None]
    created_at: Mapped[float]
    expires_at: Mapped[float]


class UploadPartRow(Row):
    """One part that lies whole on disk."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bytes: Mapped[int]
    sha256: Mapped[str]


class ModelRow(Row):
    """A registered teacher."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    kind: Mapped[str]
    source: Mapped[str]
    family: Mapped[str | None]
    shape: Mapped[Any | None] = mapped_column(Json)
    parameters: Mapped[int | None]
    context_tokens: Mapped[int | None]
    bytes: Mapped[int | None]
    created_at: Mapped[float]


class ModelFileRow(Row):
    """One file of an uploaded model; the bytes are the artifact `sha256`."""

    __tablename__ = "model_files"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)


class TargetRow(Row):
    """A device that the project described."""

    __tablename__ = "targets"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    spec: Mapped[Any] = mapped_column(Json)
    """A `CustomTarget`."""
    created_at: Mapped[float]


class AliasRow(Row):
    """A name that points to a variant."""

    __tablename__ = "aliases"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"), index=True)
    updated_at: Mapped[float]


class WebhookRow(Row):
    """An address that hears of a project's jobs. The secret signs, so it must be kept as it is."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    url: Mapped[str]
    events: Mapped[Any] = mapped_column(Json)
    secret: Mapped[str]
    enabled: Mapped[bool]
    disabled_reason: Mapped[str | None]
    created_at: Mapped[float]


class DeliveryRow(Row):
    """One message to one endpoint: the outbox, written in the transaction of what it tells."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index(None, "status", "next_try_at"), Index(None, "endpoint_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    type: Mapped[str]
    payload: Mapped[Any] = mapped_column(Json)
    status: Mapped[str]
    tries: Mapped[int]
    next_try_at: Mapped[float | None]
    response_status: Mapped[int | None]
    error: Mapped[str | None]
    created_at: Mapped[float]
    delivered_at: Mapped[float | None]


class GarbageRow(Row):
    """Bytes that a deleted object held: removed from the artifact store once nothing else can need them."""

    __tablename__ = "garbage"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[float]
