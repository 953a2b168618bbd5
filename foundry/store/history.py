"""A job's history seen from other sides: log, figures, checkpoints. Read from the events, kept nowhere else."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import select

from foundry.errors import NotFound
from foundry.spec.lifecycle import EventType, JobEvent, Level, WorkKind
from foundry.spec.resources import Attempt, JobCheckpoint, JobMetrics, Page
from foundry.store.database import Database
from foundry.store.events import record_of
from foundry.store.pages import moment
from foundry.store.tables import AttemptRow, EventRow, JobRow

_FIGURES = (EventType.PROGRESS, EventType.METRICS)
_NOT_IN_LOGS = frozenset({EventType.PROGRESS, EventType.METRICS})
_LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
_PLACES = frozenset({"stage", "step", "steps"})
T = TypeVar("T")


class History:
    """Every method takes the project of the caller and raises `NotFound` for another's job. Lists are oldest first;
    `after` is the `next` of the page before, a `seq`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def logs(
        self, project_id: str, job_id: str, limit: int = 20, after: int = 0, level: Level = "info"
    ) -> Page[JobEvent]:
        """What is said in words, from `level` upwards; progress and figures left out."""
        types = [kind for kind in EventType if kind not in _NOT_IN_LOGS]
        levels = _LEVELS[_LEVELS.index(level) :]
        return self._events(project_id, job_id, types, limit, after, record_of, levels)

    def latest(self, project_id: str, job_id: str, limit: int) -> tuple[int, Sequence[JobEvent]]:
        """The number of the last event of any kind, and the newest that say something in words, oldest first."""
        in_words = EventRow.type.not_in([kind.value for kind in _NOT_IN_LOGS])
        query = select(EventRow).where(EventRow.job_id == job_id, in_words, EventRow.level != "debug")
        with self._database.read() as session:
            job = session.get(JobRow, job_id)
            self._require(job, project_id, job_id)
            assert job is not None
            rows = session.scalars(query.order_by(EventRow.seq.desc()).limit(limit)).all()
            return job.last_seq, [record_of(row) for row in reversed(rows)]

    def metrics(self, project_id: str, job_id: str, limit: int = 20, after: int = 0) -> Page[JobMetrics]:
        """The numbers of every progress and metrics event."""
        return self._events(project_id, job_id, _FIGURES, limit, after, _metrics)

    def checkpoints(self, project_id: str, job_id: str, limit: int = 20, after: int = 0) -> Page[JobCheckpoint]:
        """Every checkpoint that an attempt told of."""
        return self._events(project_id, job_id, (EventType.CHECKPOINT,), limit, after, _checkpoint)

    def attempts(self, project_id: str, job_id: str, limit: int = 20, after: int = 0) -> Page[Attempt]:
        """Every claim of the job by a worker; the cursor is the number of the attempt."""
        query = select(AttemptRow).where(AttemptRow.job_id == job_id, AttemptRow.attempt > after)
        with self._database.read() as session:
            self._require(session.get(JobRow, job_id), project_id, job_id)
            rows = session.scalars(query.order_by(AttemptRow.attempt).limit(limit + 1)).all()
        shown = tuple(attempt_of(row) for row in rows[:limit])
        has_more = len(rows) > limit
        return Page(data=shown, has_more=has_more, next=str(rows[limit - 1].attempt) if has_more else None)

    def _events(
        self, project_id: str, job_id: str, types: Sequence[EventType], limit: int, after: int,
        to_record: Callable[[EventRow], T], levels: Sequence[Level] = (),
    ) -> Page[T]:  # fmt: skip
        query = select(EventRow).where(
            EventRow.job_id == job_id, EventRow.seq > after, EventRow.type.in_([kind.value for kind in types])
        )
        if levels:
            query = query.where(EventRow.level.in_(levels))
        with self._database.read() as session:
            self._require(session.get(JobRow, job_id), project_id, job_id)
            rows = session.scalars(query.order_by(EventRow.seq).limit(limit + 1)).all()
        has_more = len(rows) > limit
        return Page(
            data=tuple(to_record(row) for row in rows[:limit]),
            has_more=has_more,
            next=str(rows[limit - 1].seq) if has_more else None,
        )

    def _require(self, job: JobRow | None, project_id: str, job_id: str) -> None:
        if job is None or job.project_id != project_id or job.kind != WorkKind.JOB:
            raise NotFound(f"no job {job_id!r} in this project")


def attempt_of(row: AttemptRow) -> Attempt:
    """The record of one claim."""
    return Attempt(
        attempt=row.attempt, worker=row.worker, started_at=moment(row.started_at),
        ended_at=None if row.ended_at is None else moment(row.ended_at), outcome=row.outcome, message=row.message,
    )  # fmt: skip


def _metrics(row: EventRow) -> JobMetrics:
    numbers = {
        name: float(value)
        for name, value in row.data.items()
        if name not in _PLACES and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return JobMetrics(
        seq=row.seq, attempt=row.attempt, created_at=moment(row.created_at), stage=_text(row.data.get("stage")),
        step=_whole(row.data.get("step")), steps=_whole(row.data.get("steps")), values=numbers,
    )  # fmt: skip


def _checkpoint(row: EventRow) -> JobCheckpoint:
    return JobCheckpoint(
        seq=row.seq, attempt=row.attempt, stage=_text(row.data.get("stage")), step=_whole(row.data.get("step")),
        created_at=moment(row.created_at),
    )  # fmt: skip


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
