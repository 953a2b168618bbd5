"""Files that a job left beside its variants: its report. `Jobs.keep_files` writes them, under a worker's claim."""

from pathlib import Path

from foundry.errors import NotFound
from foundry.spec.lifecycle import WorkKind
from foundry.spec.variant import Artifact
from foundry.store.artifacts import ArtifactStore
from foundry.store.database import Database
from foundry.store.tables import JobFileRow
from foundry.store.work import Work

REPORTS = {"html": "report/report.html", "md": "report/report.md", "json": "report/report.json"}
"""Where a report lies, by the ending of its name."""


class JobFiles:
    """Every method takes the project of the caller; another project's job is `NotFound`."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts
        self._work = Work(database, WorkKind.JOB)

    def report(self, project_id: str, job_id: str, ending: str) -> tuple[Path, Artifact]:
        """The bytes of the report in one form, not to be changed, and its record; raise `NotFound`."""
        if ending not in REPORTS:
            raise NotFound(f"a report has no form {ending!r:.40}; its forms are {', '.join(REPORTS)}")
        with self._database.read() as session:
            job = self._work.find(session, project_id, job_id)
            row = session.get(JobFileRow, (job_id, REPORTS[ending]))
        if row is None:
            raise NotFound(
                f"job {job_id} is {job.status} and has no report: it is made when a run of the job ends, and no run of "
                "it has ended yet"
            )
        return self._artifacts.path(row.sha256), Artifact(path=row.path, bytes=row.bytes, sha256=row.sha256)
