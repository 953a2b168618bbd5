"""One key makes one object: the key's row is written in the transaction of the object itself."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundry.errors import IdempotencyConflict
from foundry.store import audit
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.records import Idempotency
from foundry.store.tables import IdempotencyRow


class Requests:
    """What requests made before, asked before the work of making it again begins."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def made(self, project_id: str, request: Idempotency | None) -> str | None:
        """The id of what this request made; None when it is new; raise `IdempotencyConflict` for another request."""
        if request is None:
            return None
        with self._database.read() as session:
            return earlier(session, project_id, request)


def earlier(session: Session, project_id: str, request: Idempotency | None) -> str | None:
    """The id of what this request made before, None when it is new; raise `IdempotencyConflict` for another request."""
    if request is None:
        return None
    row = session.scalar(
        select(IdempotencyRow).where(IdempotencyRow.project_id == project_id, IdempotencyRow.key == request.key)
    )
    if row is None:
        return None
    if (row.route, row.body_sha256) != (request.route, request.body_sha256):
        raise IdempotencyConflict(
            f"the idempotency key {request.key!r} was used before with another request ({row.route}, which made "
            f"{row.object_id}). Use a new key for a new request, and the same body to repeat the earlier one"
        )
    return row.object_id


def take_key(session: Session, project_id: str, request: Idempotency | None, object_id: str) -> str | None:
    """Reserve the key for the object about to be made; return the earlier object's id when there is one.

    Two transactions with one key: the second waits here until the first is committed or rolled back.
    """
    audit.about(object_id)
    if request is None:
        return None
    taken = insert_if_absent(
        session, IdempotencyRow, project_id=project_id, key=request.key, route=request.route,
        body_sha256=request.body_sha256, object_id=object_id, created_at=db_now(),
    )  # fmt: skip
    return None if taken else earlier(session, project_id, request)
