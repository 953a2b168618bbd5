"""Deleting what a project no longer wants, and the bytes that nothing else holds.

Bytes go an hour after the last object that held them: one that is just being made may have found them in the store and
not yet have written its row.
"""

import shutil
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Text, delete, func, select, type_coerce
from sqlalchemy.orm import Session

from foundry.errors import InUse, NotFound
from foundry.spec.lifecycle import Status, WorkKind
from foundry.store.aliases import names_of
from foundry.store.artifacts import ArtifactStore
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.models import find_model
from foundry.store.project_tables import GarbageRow, ModelFileRow, UploadRow
from foundry.store.settings import Settings
from foundry.store.tables import (
    AttemptRow,
    DatasetRow,
    EventRow,
    JobFileRow,
    JobRow,
    MeasurementRow,
    VariantFileRow,
    VariantRow,
)

_ACTIVE = [status.value for status in Status if not status.is_terminal]
_REST_S = 3600.0
_BATCH = 200
HOLDERS: tuple[Any, ...] = (
    DatasetRow.sha256, ModelFileRow.sha256, VariantFileRow.sha256, UploadRow.sha256, JobFileRow.sha256,
)  # fmt: skip
"""Every column that names bytes of the store: what stands in one of them is never removed."""


class Removal:
    """Every method takes the project of the caller; another project's object is `NotFound`."""

    def __init__(self, database: Database, artifacts: ArtifactStore, settings: Settings) -> None:
        self._database = database
        self._artifacts = artifacts
        self._models = settings.artifacts / "models"

    def dataset(self, project_id: str, dataset_id: str) -> None:
        """Raise `InUse` while a job that has not ended needs it."""
        with self._database.write() as session:
            row = session.get(DatasetRow, dataset_id)
            if row is None or row.project_id != project_id:
                raise NotFound(f"no dataset {dataset_id!r} in this project")
            self._require_unused(session, project_id, dataset_id)
            session.delete(row)
            self._let_go(session, [row.sha256])

    def model(self, project_id: str, model_id: str) -> None:
        """Raise `InUse` while a job that has not ended needs it. A folder or a model on the hub stays where it is."""
        with self._database.write() as session:
            row = find_model(session, project_id, model_id)
            self._require_unused(session, project_id, model_id)
            files = select(ModelFileRow.sha256).where(ModelFileRow.model_id == model_id)
            digests = session.scalars(files).all()
            session.execute(delete(ModelFileRow).where(ModelFileRow.model_id == model_id))
            session.delete(row)
            self._let_go(session, digests)
        shutil.rmtree(self._models / model_id, ignore_errors=True)

    def variant(self, project_id: str, variant_id: str) -> None:
        """Raise `InUse` while an alias points to it or an evaluation that has not ended needs it."""
        with self._database.write() as session:
            row = session.get(VariantRow, variant_id)
            if row is None or row.project_id != project_id:
                raise NotFound(f"no variant {variant_id!r} in this project")
            if names := names_of(session, variant_id):
                raise InUse(f"variant {variant_id} is what {', '.join(names)} points to; move or delete it")
            self._require_unused(session, project_id, variant_id)
            files = select(VariantFileRow.sha256).where(VariantFileRow.variant_id == variant_id)
            digests = session.scalars(files).all()
            for table in (VariantFileRow, MeasurementRow):
                session.execute(delete(table).where(table.variant_id == variant_id))
            session.delete(row)
            self._let_go(session, digests)

    def job(self, project_id: str, job_id: str, kind: WorkKind = WorkKind.JOB) -> None:
        """Remove ended work of this kind and its history; raise `InUse` while it goes on or has variants."""
        with self._database.write() as session:
            row = session.get(JobRow, job_id)
            if row is None or row.project_id != project_id or row.kind != kind:
                raise NotFound(f"no {kind} {job_id!r} in this project")
            if row.status in _ACTIVE:
                raise InUse(f"{kind} {job_id} is {row.status}; cancel it and wait until it has ended")
            if count := session.scalar(select(func.count()).where(VariantRow.job_id == job_id)):
                raise InUse(f"job {job_id} has {count} variant{'' if count == 1 else 's'}; delete them first")
            digests = session.scalars(select(JobFileRow.sha256).where(JobFileRow.job_id == job_id)).all()
            for table in (EventRow, AttemptRow, JobFileRow):
                session.execute(delete(table).where(table.job_id == job_id))
            session.delete(row)
            self._let_go(session, digests)

    def sweep(self) -> None:
        """Remove the bytes that were let go of an hour ago and that nothing holds."""
        old = select(GarbageRow.sha256).where(GarbageRow.since < db_now() - _REST_S).limit(_BATCH)
        with self._database.read() as session:
            digests = session.scalars(old).all()
        for sha256 in digests:
            with self._database.write() as session:
                if not any(session.scalar(select(column).where(column == sha256).limit(1)) for column in HOLDERS):
                    self._artifacts.remove(sha256, older_than_s=_REST_S)
                session.execute(delete(GarbageRow).where(GarbageRow.sha256 == sha256))

    def _require_unused(self, session: Session, project_id: str, object_id: str) -> None:
        active = select(JobRow.id).where(JobRow.project_id == project_id, JobRow.status.in_(_ACTIVE))
        named = type_coerce(JobRow.inputs, Text).contains(f'"{object_id}"', autoescape=True)
        if job_id := session.scalar(active.where(named).limit(1)):
            raise InUse(f"{object_id} is needed by {job_id}, which has not ended; cancel that first")

    def _let_go(self, session: Session, digests: Iterable[str]) -> None:
        session.flush()
        for sha256 in set(digests):
            insert_if_absent(session, GarbageRow, sha256=sha256, since=db_now())
