"""From a job's row to the record that the service sends."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import Progress, Status
from foundry.spec.resources import Job, Reason
from foundry.store.pages import moment
from foundry.store.queueing import Place, places
from foundry.store.tables import JobRow
from foundry.store.variants import ids_by_job


def records_of(session: Session, rows: Sequence[JobRow]) -> Sequence[Job]:
    """Jobs with the ids of their variants, and their places in the queue."""
    variant_ids = ids_by_job(session, [row.id for row in rows])
    queue: Mapping[str, Place] = places(session) if any(row.status == Status.QUEUED for row in rows) else {}
    return [_record(row, variant_ids.get(row.id, ()), queue.get(row.id)) for row in rows]


def _record(row: JobRow, variant_ids: tuple[str, ...], place: Place | None) -> Job:
    status = Status(row.status)
    reason = Reason(code=row.reason_code, message=row.reason_message or "") if row.reason_code else None
    return Job(
        id=row.id, name=row.name, status=status, is_terminal=status.is_terminal, status_reason=reason,
        spec=JobSpec.model_validate(row.spec),
        stage=row.stage,
        progress=Progress.model_validate(row.progress) if row.progress else None, attempt=row.epoch,
        parent_id=row.parent_id, variant_ids=variant_ids, created_at=moment(row.created_at),
        queue_position=place and place.position,
        expected_start_at=None if place is None or place.starts_at is None else moment(place.starts_at),
        started_at=None if row.started_at is None else moment(row.started_at),
        finished_at=None if row.finished_at is None else moment(row.finished_at),
    )  # fmt: skip
