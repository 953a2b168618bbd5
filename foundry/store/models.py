"""Registered teachers: a folder that the operator allows, a pinned model of the hub, or files that were uploaded."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundry.errors import NotFound
from foundry.intake.checkpoint import Checkpoint, context_limit
from foundry.spec.library import Model, Upload
from foundry.spec.resources import Page
from foundry.spec.weights import Shape
from foundry.store.artifacts import ArtifactStore, storage_errors
from foundry.store.database import Database, db_now
from foundry.store.idempotency import take_key
from foundry.store.ids import new_id
from foundry.store.pages import moment, page_of
from foundry.store.project_tables import ModelFileRow, ModelRow
from foundry.store.records import Idempotency
from foundry.store.settings import Settings
from foundry.store.usage import require_room_for_bytes


class Models:
    """Every method takes the project of the caller; another project's model is `NotFound`."""

    def __init__(self, database: Database, artifacts: ArtifactStore, settings: Settings) -> None:
        self._database = database
        self._artifacts = artifacts
        self._root = settings.artifacts / "models"

    def register(
        self, project_id: str, name: str, kind: str, source: str, checkpoint: Checkpoint | None,
        idempotency: Idempotency | None = None, *, model_id: str | None = None,
        files: Mapping[str, Upload] | None = None,
    ) -> Model:  # fmt: skip
        """Keep a model's name and what its checkpoint says of it; raise `QuotaExceeded`."""
        model_id = model_id or new_id("mdl")
        files = files or {}
        size = sum(upload.bytes for upload in files.values())
        with self._database.write() as session:
            made = take_key(session, project_id, idempotency, model_id)
            if made is None:
                require_room_for_bytes(session, project_id, size)
                found = _found(checkpoint)
                now = session.scalars(select(db_now())).one()
                session.add(
                    ModelRow(
                        id=model_id, project_id=project_id, name=name, kind=kind, source=source, created_at=now,
                        bytes=size or None, **found,
                    )
                )  # fmt: skip
                session.flush()
                session.add_all(
                    ModelFileRow(model_id=model_id, path=path, bytes=upload.bytes, sha256=upload.sha256)
                    for path, upload in files.items()
                )
        return self.get(project_id, made or model_id)

    def lay_out(self, model_id: str, files: Mapping[str, Upload]) -> Path:
        """A folder with the uploaded files under their names, as hard links: no second copy, and no link to follow."""
        folder = self._root / model_id
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, upload in files.items():
                os.link(self._artifacts.path(upload.sha256 or ""), folder / name)
        return folder

    def drop(self, model_id: str) -> None:
        """Remove the folder of a model that was not registered after all."""
        shutil.rmtree(self._root / model_id, ignore_errors=True)

    def get(self, project_id: str, model_id: str) -> Model:
        """One model; raise `NotFound`."""
        with self._database.read() as session:
            return _record(find_model(session, project_id, model_id))

    def list(self, project_id: str, limit: int = 20, after: str | None = None) -> Page[Model]:
        """Newest first."""
        query = select(ModelRow).where(ModelRow.project_id == project_id)
        with self._database.read() as session:
            return page_of(session, query, ModelRow.id, limit, after, _records)

    def teacher(self, project_id: str, model_id: str) -> str:
        """What a job's teacher is when it names this model: a folder or ORG/NAME@REVISION; raise `NotFound`."""
        model = self.get(project_id, model_id)
        return str(self._root / model_id) if model.kind == "upload" else model.source


def find_model(session: Session, project_id: str, model_id: str) -> ModelRow:
    """The row of a project's model; raise `NotFound`."""
    row = session.get(ModelRow, model_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no model {model_id!r} in this project")
    return row


def _found(checkpoint: Checkpoint | None) -> dict[str, object]:
    if checkpoint is None:
        return {}
    return {
        "family": checkpoint.family.name, "shape": checkpoint.shape.model_dump(mode="json"),
        "parameters": checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present),
        "context_tokens": context_limit(checkpoint.config),
    }  # fmt: skip


def _records(_: Session, rows: Sequence[ModelRow]) -> Sequence[Model]:
    return [_record(row) for row in rows]


def _record(row: ModelRow) -> Model:
    return Model(
        id=row.id, name=row.name, kind=row.kind, source=row.source, family=row.family,
        shape=None if row.shape is None else Shape.model_validate(row.shape), parameters=row.parameters,
        context_tokens=row.context_tokens, bytes=row.bytes, created_at=moment(row.created_at),
    )  # fmt: skip
