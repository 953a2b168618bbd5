"""What a project has going on, in numbers: read with two queries however many jobs there are."""

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select

from foundry.spec.lifecycle import Status, WorkKind
from foundry.store.database import Database
from foundry.store.tables import JobRow

_ACTIVE = [status.value for status in Status if not status.is_terminal]


class Overview:
    """Sums over one project's unfinished jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def counts(self, project_id: str) -> Mapping[Status, int]:
        """Unfinished jobs by status; ended ones can be very many and are not counted."""
        of_project = (JobRow.project_id == project_id, JobRow.kind == WorkKind.JOB.value)
        query = select(JobRow.status, func.count()).where(*of_project, JobRow.status.in_(_ACTIVE))
        with self._database.read() as session:
            return {Status(name): count for name, count in session.execute(query.group_by(JobRow.status))}

    def workers(self, project_id: str, job_ids: Sequence[str]) -> Mapping[str, str]:
        """Who carries out each of these jobs."""
        query = select(JobRow.id, JobRow.worker).where(JobRow.project_id == project_id, JobRow.id.in_(job_ids))
        with self._database.read() as session:
            return {job_id: worker for job_id, worker in session.execute(query) if worker is not None}
