"""Uploaded data: a row for what it is, an artifact for its bytes."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from foundry.errors import NotFound
from foundry.intake.documents import DatasetSummary
from foundry.intake.inspection import inspect
from foundry.spec.library import DatasetReport
from foundry.spec.resources import Dataset, Page
from foundry.store.artifacts import ArtifactStore
from foundry.store.database import Database, db_now
from foundry.store.idempotency import earlier, take_key
from foundry.store.ids import new_id
from foundry.store.pages import moment, page_of
from foundry.store.records import Idempotency
from foundry.store.tables import DatasetRow
from foundry.store.usage import require_room_for_bytes

_COLUMNS = DatasetRow.__table__.c
_ONE = select(*(column for column in _COLUMNS if column.name != "report")).where(
    _COLUMNS.id == bindparam("dataset_id"), _COLUMNS.project_id == bindparam("project_id")
)


class Datasets:
    """Every method takes the project of the caller; another project's dataset is `NotFound`."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    def create(
        self,
        project_id: str,
        name: str,
        staged_file: Path,
        summary: DatasetSummary,
        idempotency: Idempotency | None = None,
        report: DatasetReport | None = None,
    ) -> Dataset:
        """Keep a validated file, or return what the same request made before. The staged file stays where it is.

        Raises `QuotaExceeded`.
        """
        with self._database.read() as session:
            made = earlier(session, project_id, idempotency)
        if made is not None:
            return self.get(project_id, made)
        self._artifacts.put(staged_file, sha256=summary.sha256)
        dataset_id = new_id("ds")
        with self._database.write() as session:
            made = take_key(session, project_id, idempotency, dataset_id)
            if made is None:
                require_room_for_bytes(session, project_id, summary.bytes)
                now = session.scalars(select(db_now())).one()
                row = DatasetRow(
                    id=dataset_id, project_id=project_id, name=name, format=summary.format, bytes=summary.bytes,
                    sha256=summary.sha256, documents=summary.documents, created_at=now,
                    report=report and report.model_dump(exclude={"dataset_id"}),
                )  # fmt: skip
                session.add(row)
        return self.get(project_id, made or dataset_id)

    def get(self, project_id: str, dataset_id: str) -> Dataset:
        """One dataset; raise `NotFound`."""
        for row in self._database.look(_ONE, project_id=project_id, dataset_id=dataset_id):
            return _record(row)
        raise _no(dataset_id)

    def list(self, project_id: str, limit: int = 20, after: str | None = None) -> Page[Dataset]:
        """Newest first; `after` is the `next` of the page before."""
        query = select(DatasetRow).where(DatasetRow.project_id == project_id)
        with self._database.read() as session:
            return page_of(session, query, DatasetRow.id, limit, after, _records)

    def report(self, project_id: str, dataset_id: str) -> DatasetReport:
        """What was found when every document was read; raise `NotFound`."""
        with self._database.read() as session:
            row = _find(session, project_id, dataset_id)
        if row.report is None:  # from before there were reports: the bytes never change, so it can be made now
            return inspect(self._artifacts.path(row.sha256), dataset_id)
        return DatasetReport(dataset_id=dataset_id, **row.report)

    def file(self, project_id: str, dataset_id: str) -> Path:
        """The bytes as they were sent, not to be changed; raise `NotFound`."""
        return self._artifacts.path(self.get(project_id, dataset_id).sha256)


def _find(session: Session, project_id: str, dataset_id: str) -> DatasetRow:
    row = session.get(DatasetRow, dataset_id)
    if row is None or row.project_id != project_id:
        raise _no(dataset_id)
    return row


def _no(dataset_id: str) -> NotFound:
    return NotFound(f"no dataset {dataset_id!r} in this project")


def _records(_: Session, rows: Sequence[DatasetRow]) -> Sequence[Dataset]:
    return [_record(row) for row in rows]


def _record(row: DatasetRow) -> Dataset:
    return Dataset(
        id=row.id, name=row.name, format=row.format, bytes=row.bytes, sha256=row.sha256, documents=row.documents,
        created_at=moment(row.created_at),
    )  # fmt: skip
