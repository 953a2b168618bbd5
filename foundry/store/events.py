"""A job's history: appended, never edited. `seq` has no gap because it is counted under the lock of the job's row."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from foundry.spec.lifecycle import STAGES, EventType, JobEvent, Progress, RunEvent, WorkKind
from foundry.store import outbox
from foundry.store.database import insert_rows
from foundry.store.ids import new_id
from foundry.store.pages import moment
from foundry.store.tables import AttemptRow, EventRow, JobRow

RUN_EVENTS = frozenset(
    {
        EventType.STAGE_STARTED, EventType.STAGE_COMPLETED, EventType.STAGE_SKIPPED, EventType.PROGRESS,
        EventType.METRICS, EventType.CHECKPOINT, EventType.WARNING, EventType.LOG,
    }
)  # fmt: skip
"""What a run may say. All others go with a transition, and only the store makes those."""

_MILESTONES: Mapping[EventType, tuple[str, ...]] = MappingProxyType(
    {EventType.CHECKPOINT: ("stage", "step"), EventType.STAGE_COMPLETED: ("stage",)}
)
"""Events that are progress, with the data that tells one from another: work done a second time is no progress."""


def append(session: Session, job: JobRow, events: Sequence[RunEvent], now: float) -> None:
    """Add events to a job whose row this transaction has locked."""
    first = job.last_seq + 1
    job.last_seq += len(events)
    write(session, job, events, first, now)


def write(session: Session, job: JobRow, events: Sequence[RunEvent], first: int, now: float) -> None:
    """The rows of events that count from `first` to what the job's row says is its last, and their messages."""
    rows = [
        {
            "job_id": job.id, "seq": seq, "id": new_id("evt"), "attempt": job.epoch, "type": event.type.value,
            "level": event.level, "created_at": now, "message": event.message, "data": event.data,
        }
        for seq, event in enumerate(events, first)
    ]  # fmt: skip
    insert_rows(session, EventRow, rows)
    outbox.enqueue(session, job, events, now)


def follow(session: Session, job: JobRow, event: RunEvent) -> None:
    """Show on the job what a run's event says: the stage, how far it is, and whether the attempt got somewhere new."""
    if event.type in (EventType.STAGE_STARTED, EventType.PROGRESS) and event.data.get("stage") in STAGES:
        job.stage = event.data["stage"]
        job.progress = _progress(event.data) if event.type is EventType.PROGRESS else None
    elif event.type is EventType.METRICS and job.kind == WorkKind.EVALUATION and "result" in event.data:
        job.result = event.data["result"]  # all that was found so far: the latest holds the ones before
    elif event.type in _MILESTONES:
        attempt = session.get_one(AttemptRow, (job.id, job.epoch))
        attempt.progressed = attempt.progressed or _is_new(session, job, event)


def read(session: Session, job_id: str, after: int, limit: int) -> list[JobEvent]:
    """The events that follow number `after`, in order."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > after).order_by(EventRow.seq).limit(limit)
    return [record_of(row) for row in session.scalars(query)]


def _progress(data: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        known = {name: data[name] for name in Progress.model_fields if name in data}
        return Progress.model_validate(known).model_dump(exclude_none=True)
    except ValidationError:
        return None


def _is_new(session: Session, job: JobRow, event: RunEvent) -> bool:
    names = _MILESTONES[event.type]
    if any(name not in event.data for name in names):
        return True  # nothing to compare by
    earlier = select(EventRow.data).where(
        EventRow.job_id == job.id, EventRow.attempt < job.epoch, EventRow.type == event.type.value
    )
    return all(any(data.get(name) != event.data[name] for name in names) for data in session.scalars(earlier))


def record_of(row: EventRow) -> JobEvent:
    """The record of one event."""
    return JobEvent(
        id=row.id, job_id=row.job_id, seq=row.seq, attempt=row.attempt, type=EventType(row.type),
        level=row.level, created_at=moment(row.created_at), message=row.message, data=row.data,
    )  # fmt: skip
