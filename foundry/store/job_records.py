"""From a row of work to the record that the service sends."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from foundry.spec.evaluation import Evaluation, EvaluationResult, EvaluationSpec
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


def submitted_of(session: Session, row: JobRow) -> Job:
    """A job that was just submitted, or that the same request submitted before. Its place in the queue is for those to
    look up who ask again: submitting is to be quick."""
    return _record(row, (), None) if row.status == Status.QUEUED and not row.epoch else records_of(session, [row])[0]


def evaluation_of(row: JobRow) -> Evaluation:
    """An evaluation with what it has found so far."""
    return Evaluation(
        **_life(row), spec=EvaluationSpec.model_validate(row.spec),
        result=None if row.result is None else EvaluationResult.model_validate(row.result),
    )  # fmt: skip


def _record(row: JobRow, variant_ids: tuple[str, ...], place: Place | None) -> Job:
    return Job(
        **_life(row), spec=JobSpec.model_validate(row.spec), stage=row.stage, parent_id=row.parent_id,
        variant_ids=variant_ids, queue_position=place and place.position,
        expected_start_at=None if place is None or place.starts_at is None else moment(place.starts_at),
    )  # fmt: skip


def _life(row: JobRow) -> dict[str, Any]:
    """What all kinds of work have in common."""
    status = Status(row.status)
    return {
        "id": row.id, "name": row.name, "status": status, "is_terminal": status.is_terminal,
        "status_reason": Reason(code=row.reason_code, message=row.reason_message or "") if row.reason_code else None,
        "progress": Progress.model_validate(row.progress) if row.progress else None, "attempt": row.epoch,
        "created_at": moment(row.created_at),
        "started_at": None if row.started_at is None else moment(row.started_at),
        "finished_at": None if row.finished_at is None else moment(row.finished_at),
    }  # fmt: skip
