"""What a project uses, and whether it may use more."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from foundry.errors import QuotaExceeded
from foundry.spec.access import Limits, Usage
from foundry.spec.lifecycle import Status, WorkKind
from foundry.store.database import Database, db_now
from foundry.store.pages import moment
from foundry.store.project_tables import ModelRow, UploadRow
from foundry.store.projects import quota_now, quota_of
from foundry.store.settings import Settings
from foundry.store.tables import AttemptRow, DatasetRow, JobRow, VariantRow

_ACTIVE = [status.value for status in Status if not status.is_terminal]


class UsageMeter:
    """Sums over one project."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def usage(self, project_id: str, since: datetime | None = None, until: datetime | None = None) -> Usage:
        """Of a span of time; by default the running calendar month (UTC) up to now."""
        with self._database.read() as session:
            now = session.scalars(select(db_now())).one()
            begin = month_of(now) if since is None else since.timestamp()
            end = now if until is None else until.timestamp()
            # Of a span that ends now, the clock's own moment is part: it may tick in milliseconds.
            before = JobRow.created_at <= end if until is None else JobRow.created_at < end
            within = (JobRow.project_id == project_id, JobRow.created_at >= begin, before)
            jobs = (*within, JobRow.kind == WorkKind.JOB.value)
            counts = session.execute(select(JobRow.status, func.count()).where(*jobs).group_by(JobRow.status)).all()
            evaluations = select(func.count()).where(*within, JobRow.kind == WorkKind.EVALUATION.value)
            return Usage(
                since=moment(begin), until=moment(end), jobs_submitted=sum(count for _, count in counts),
                jobs_by_status={status: count for status, count in counts},
                evaluations_submitted=session.scalars(evaluations).one(),
                run_seconds=_run_seconds(session, project_id, begin, end, now),
                dataset_bytes=_total(session, DatasetRow, project_id),
                model_bytes=_total(session, ModelRow, project_id),
                upload_bytes=_total(session, UploadRow, project_id, UploadRow.status == "open"),
                variant_bytes=_total(session, VariantRow, project_id),
            )  # fmt: skip

    def limits(self, project_id: str) -> Limits:
        """What the project may use and how much of it is used."""
        used = self.usage(project_id)
        with self._database.read() as session:
            return Limits(
                quota=quota_of(session, project_id), active_jobs=_active_jobs(session, project_id),
                stored_bytes=used.stored_bytes, run_seconds_this_month=used.run_seconds,
                requests_per_minute=self._settings.requests_per_minute,
                largest_upload_bytes=self._settings.max_upload_bytes,
            )  # fmt: skip


def require_room_for_job(session: Session, project_id: str) -> float:
    """Raise `QuotaExceeded` when the project may have no further job now; else return the moment that this is."""
    quota, now = quota_now(session, project_id)
    if quota.active_jobs is None and quota.run_seconds_per_month is None:
        return now
    quota, now = quota_now(session, project_id, lock=True)
    if quota.active_jobs is not None and _active_jobs(session, project_id) >= quota.active_jobs:
        raise QuotaExceeded(
            f"the project may have {quota.active_jobs:,} jobs and evaluations that have not ended, and has them; "
            "cancel one, wait until one ends, or ask the operator for more"
        )
    allowed = quota.run_seconds_per_month
    if allowed is not None and _run_seconds(session, project_id, month_of(now), now, now) >= allowed:
        raise QuotaExceeded(f"the project has used its {allowed:,} run seconds of this month; ask for more")
    return now


def require_room_for_bytes(session: Session, project_id: str, more_bytes: int) -> None:
    """Raise `QuotaExceeded` when the project may not store so much more."""
    if quota_of(session, project_id).stored_bytes is None:
        return
    allowed = quota_of(session, project_id, lock=True).stored_bytes
    open_uploads = _total(session, UploadRow, project_id, UploadRow.status == "open")
    used = open_uploads + sum(_total(session, row, project_id) for row in (DatasetRow, ModelRow, VariantRow))
    if allowed is not None and used + more_bytes > allowed:
        raise QuotaExceeded(
            f"the project may store {allowed:,} bytes and stores {used:,}; {more_bytes:,} more do not fit. Delete "
            "something, or ask the operator for more"
        )


def month_of(now: float) -> float:
    """The first second of the calendar month (UTC)."""
    return datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def _active_jobs(session: Session, project_id: str) -> int:
    query = select(func.count()).where(JobRow.project_id == project_id, JobRow.status.in_(_ACTIVE))
    return session.scalars(query).one()


def _run_seconds(session: Session, project_id: str, begin: float, end: float, now: float) -> float:
    lasted = func.coalesce(AttemptRow.ended_at, now) - AttemptRow.started_at
    query = select(func.coalesce(func.sum(lasted), 0.0)).join(JobRow, JobRow.id == AttemptRow.job_id)
    query = query.where(JobRow.project_id == project_id, AttemptRow.started_at >= begin, AttemptRow.started_at < end)
    return float(session.scalars(query).one())


def _total(session: Session, row: Any, project_id: str, *conditions: Any) -> int:
    query = select(func.sum(row.bytes)).where(row.project_id == project_id, *conditions)
    return int(session.scalar(query) or 0)
