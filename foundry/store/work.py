"""What all kinds of work share on their users' side. Jobs and evaluations are rows of one table and live one life."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from foundry.errors import NotFound
from foundry.spec.evaluation import EvaluationSpec
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, JobEvent, RunEvent, Status, WorkKind
from foundry.store import events as history
from foundry.store.database import Database, db_now, insert_rows
from foundry.store.idempotency import take_key
from foundry.store.records import Claim, EvaluationInputs, Idempotency, JobInputs
from foundry.store.rows import storable
from foundry.store.tables import JobRow
from foundry.store.transition import move, user_goal
from foundry.store.usage import require_room_for_job

R = TypeVar("R")
"""What is sent of a row."""


class _Order(NamedTuple):
    message: str
    asked: Status | None
    """Where work stands that was asked already: asking twice is no error."""
    event: EventType | None = None


_ORDERS: Mapping[str, _Order] = MappingProxyType(
    {
        "cancel": _Order("cancelled by the user", Status.CANCELLING),
        "pause": _Order("paused by the user", Status.PAUSING),
        "resume": _Order("resumed by the user", None, EventType.RESUMED),
    }
)


class Work:
    """One kind of work, for its users. Every method takes their project: another project's object is `NotFound`."""

    def __init__(self, database: Database, kind: WorkKind) -> None:
        self._database = database
        self._kind = kind

    def submit(
        self, project_id: str, new_id: str, spec: JobSpec | EvaluationSpec, inputs: JobInputs | EvaluationInputs,
        idempotency: Idempotency | None, to_record: Callable[[Session, JobRow], R], parent_id: str | None = None,
    ) -> R:  # fmt: skip
        """Queue it and return its record, or that of the one that the same request made before.

        The record is made of what is written, within the transaction: a submit costs no second look. Raises
        `QuotaExceeded`.
        """
        with self._database.write() as session:
            made = take_key(session, project_id, idempotency, new_id)
            if made is not None:
                return to_record(session, self.find(session, project_id, made))
            now = require_room_for_job(session, project_id)
            submitted = [RunEvent(type=EventType.SUBMITTED, message="submitted")]
            values = {
                "id": new_id, "project_id": project_id, "kind": self._kind.value, "name": storable(spec.name),
                "status": Status.QUEUED.value, "epoch": 0, "last_seq": len(submitted), "parent_id": parent_id,
                "spec": spec.model_dump(mode="json"), "inputs": inputs.model_dump(mode="json"),
                "fruitless_attempts": 0, "halvings": 0, "created_at": now,
                "priority": spec.priority if isinstance(spec, JobSpec) else 0,
                "memory_bytes": inputs.memory_bytes if isinstance(inputs, JobInputs) else None,
            }  # fmt: skip
            insert_rows(session, JobRow, [values])
            row = JobRow(**values)  # to read from: the session never hears of it
            history.write(session, row, submitted, 1, now)
            return to_record(session, row)

    def order(self, project_id: str, work_id: str, verb: str) -> None:
        """Cancel, pause or resume; raise `IllegalTransition` when there is nothing to do that to."""
        order = _ORDERS[verb]
        with self._database.write() as session:
            row = self.find(session, project_id, work_id, lock=True)
            if row.status == order.asked:
                return
            now = session.scalars(select(db_now())).one()
            move(session, row, user_goal(row, verb), order.message, now=now, event=order.event)
            if order.event is EventType.RESUMED:
                row.fruitless_attempts = row.halvings = 0

    def events(self, project_id: str, work_id: str, after: int = 0, limit: int = 100) -> Sequence[JobEvent]:
        """The events that follow number `after`, in order."""
        with self._database.read() as session:
            self.find(session, project_id, work_id)
            return history.read(session, work_id, after, limit)

    def find(self, session: Session, project_id: str, work_id: str, *, lock: bool = False) -> JobRow:
        """The row."""
        query = self.of(project_id).where(JobRow.id == work_id)
        row: JobRow | None = session.scalar(query.with_for_update(key_share=True) if lock else query)
        if row is None:
            raise NotFound(f"no {self._kind} {work_id!r} in this project")
        return row

    def of(self, project_id: str) -> Select[Any]:
        """All of a project."""
        return select(JobRow).where(JobRow.project_id == project_id, JobRow.kind == self._kind.value)


def claim_of(row: JobRow, worker: str) -> Claim:
    """What a worker learns of the work that it has taken."""
    records = (EvaluationSpec, EvaluationInputs) if row.kind == WorkKind.EVALUATION else (JobSpec, JobInputs)
    spec, inputs = records[0].model_validate(row.spec), records[1].model_validate(row.inputs)
    return Claim(
        job_id=row.id, project_id=row.project_id, epoch=row.epoch, worker=worker, spec=spec, inputs=inputs,
        halvings=row.halvings,
    )  # fmt: skip
