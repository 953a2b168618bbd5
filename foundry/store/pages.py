"""Lists newest first, one page at a time. Ids sort by time, so the last id of a page is the cursor."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from foundry.spec.resources import Page


class HasId(Protocol):
    id: Any


R = TypeVar("R", bound=HasId)
"""A row."""
T = TypeVar("T")


def page_of(
    session: Session,
    query: Select[Any],
    id_column: InstrumentedAttribute[str],
    limit: int,
    after: str | None,
    to_records: Callable[[Session, Sequence[R]], Sequence[T]],
) -> Page[T]:
    """At most `limit` rows that are older than `after`, as records."""
    if after is not None:
        query = query.where(id_column < after)
    rows: Sequence[R] = session.scalars(query.order_by(id_column.desc()).limit(limit + 1)).all()
    shown = rows[:limit]
    has_more = len(rows) > limit
    return Page(
        data=tuple(to_records(session, shown)),
        has_more=has_more,
        next=str(shown[-1].id) if has_more and shown else None,
    )


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
