"""Who wrote what. `Database.write` calls `sign` in every transaction, so that no write of a request goes unrecorded.

Who acts is set once for a request (api/auth.py); a worker acts for nobody and leaves no audit event.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Insert, insert, select
from sqlalchemy.orm import Session

from foundry.spec.access import AuditEvent
from foundry.spec.resources import Page
from foundry.store.ids import new_id
from foundry.store.pages import moment, page_of
from foundry.store.project_tables import AuditRow
from foundry.store.rows import table_of


@dataclass(kw_only=True)
class Actor:
    """The caller of one request that may write."""

    project_id: str
    key_id: str
    member_id: str | None
    request_id: str
    address: str | None
    action: str
    """The operation."""
    object_id: str | None = None
    """What it is done to; set late by what creates something."""
    is_recorded: bool = False


acting: ContextVar[Actor | None] = ContextVar("acting", default=None)


def about(object_id: str) -> None:
    """Name the object of the running request, where the address did not name it."""
    actor = acting.get()
    if actor is not None and actor.object_id is None:
        actor.object_id = object_id


def signature(now: Any) -> Insert:
    """The statement that `sign` sends; `now` is the database's own expression."""
    return insert(table_of(AuditRow)).values(created_at=now)


def sign(session: Session, signature: Insert) -> None:
    """Add the audit event of the running request to its transaction."""
    actor = acting.get()
    if actor is None or actor.is_recorded:
        return
    event = {
        "id": new_id("aud"), "project_id": actor.project_id, "action": actor.action, "object_id": actor.object_id,
        "key_id": actor.key_id, "member_id": actor.member_id, "request_id": actor.request_id, "address": actor.address,
    }  # fmt: skip
    session.connection().execute(signature, event)


def committed() -> None:
    """The transaction that was signed is on disk: the request's other transactions need no event of their own."""
    actor = acting.get()
    if actor is not None:
        actor.is_recorded = True


def events(session: Session, project_id: str, limit: int, after: str | None, object_id: str | None) -> Page[AuditEvent]:
    """Newest first; of one object or of all."""
    query = select(AuditRow).where(AuditRow.project_id == project_id)
    if object_id is not None:
        query = query.where(AuditRow.object_id == object_id)
    return page_of(session, query, AuditRow.id, limit, after, _records)


def _records(_: Session, rows: Sequence[AuditRow]) -> Sequence[AuditEvent]:
    return [_record(row) for row in rows]


def _record(row: AuditRow) -> AuditEvent:
    return AuditEvent(
        id=row.id, action=row.action, object_id=row.object_id, key_id=row.key_id, member_id=row.member_id,
        request_id=row.request_id, address=row.address, created_at=moment(row.created_at),
    )  # fmt: skip
