"""Evaluations, as users ask for them. Workers carry them out through `Jobs`, like every work."""

import json
from collections.abc import Sequence

from sqlalchemy import Text, type_coerce
from sqlalchemy.orm import Session

from foundry.spec.evaluation import Evaluation, EvaluationSpec
from foundry.spec.lifecycle import JobEvent, Status, WorkKind
from foundry.spec.resources import Page
from foundry.store.database import Database
from foundry.store.ids import new_id
from foundry.store.job_records import evaluation_of
from foundry.store.pages import page_of
from foundry.store.records import EvaluationInputs, Idempotency
from foundry.store.tables import JobRow
from foundry.store.work import Work


class Evaluations:
    """Every method takes the project of the caller; another project's evaluation is `NotFound`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._work = Work(database, WorkKind.EVALUATION)

    def submit(
        self, project_id: str, spec: EvaluationSpec, inputs: EvaluationInputs, idempotency: Idempotency | None = None
    ) -> Evaluation:
        """Queue an evaluation, or return the one that the same request made before; raise `QuotaExceeded`."""
        return self._work.submit(
            project_id, new_id("eval"), spec, inputs, idempotency, lambda _, row: evaluation_of(row)
        )

    def get(self, project_id: str, evaluation_id: str) -> Evaluation:
        """One evaluation with what it has found so far."""
        with self._database.read() as session:
            return evaluation_of(self._work.find(session, project_id, evaluation_id))

    def list(
        self, project_id: str, limit: int = 20, after: str | None = None, status: Status | None = None,
        model: str | None = None,
    ) -> Page[Evaluation]:  # fmt: skip
        """Newest first; `after` is the `next` of the page before, `model` the id of what was measured."""
        query = self._work.of(project_id)
        if status is not None:
            query = query.where(JobRow.status == status.value)
        if model is not None:
            # A spec is kept as `Json` writes it, where a quotation mark inside of a text has a backslash before it.
            named = json.dumps({"model": model}, separators=(",", ":"))[1:-1]
            query = query.where(type_coerce(JobRow.spec, Text).contains(named, autoescape=True))
        with self._database.read() as session:
            return page_of(session, query, JobRow.id, limit, after, _records)

    def events(self, project_id: str, evaluation_id: str, after: int = 0, limit: int = 100) -> Sequence[JobEvent]:
        """The events that follow number `after`, in order."""
        return self._work.events(project_id, evaluation_id, after, limit)

    def order(self, project_id: str, evaluation_id: str, verb: str) -> Evaluation:
        """Cancel, pause or resume; raise `IllegalTransition` when there is nothing to do that to."""
        self._work.order(project_id, evaluation_id, verb)
        return self.get(project_id, evaluation_id)


def _records(_: Session, rows: Sequence[JobRow]) -> Sequence[Evaluation]:
    return [evaluation_of(row) for row in rows]
