"""Finished models. `publish` is called by `jobs.succeed` in its one transaction; everything else reads."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundry.errors import NotFound
from foundry.spec.resources import Page, Variant, VariantLineage
from foundry.spec.variant import Artifact, VariantManifest
from foundry.store.aliases import names_of
from foundry.store.artifacts import ArtifactStore
from foundry.store.database import Database
from foundry.store.ids import new_id
from foundry.store.pages import moment, page_of
from foundry.store.records import NewVariant
from foundry.store.tables import DatasetRow, JobRow, VariantFileRow, VariantRow

_MOST_ANCESTORS = 100


class Variants:
    """Every method takes the project of the caller; another project's variant is `NotFound`."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    def list(
        self, project_id: str, job_id: str | None = None, limit: int = 20, after: str | None = None
    ) -> Page[Variant]:
        """Newest first, of one job or of all; `after` is the `next` of the page before."""
        query = select(VariantRow).where(VariantRow.project_id == project_id)
        if job_id is not None:
            query = query.where(VariantRow.job_id == job_id)
        with self._database.read() as session:
            return page_of(session, query, VariantRow.id, limit, after, _records)

    def get(self, project_id: str, variant_id: str) -> Variant:
        """One variant; raise `NotFound`."""
        with self._database.read() as session:
            row = session.get(VariantRow, variant_id)
            if row is None or row.project_id != project_id:
                raise NotFound(f"no variant {variant_id!r} in this project")
            return _records(session, [row])[0]

    def manifest(self, project_id: str, variant_id: str) -> dict[str, Any]:
        """manifest.json as it ships; raise `NotFound`."""
        with self._artifacts.open(self.get(project_id, variant_id).manifest_sha256) as file:
            return dict(json.load(file))

    def lineage(self, project_id: str, variant_id: str) -> VariantLineage:
        """Teacher, data and jobs behind a variant, by id where they still exist; raise `NotFound`."""
        variant = self.get(project_id, variant_id)
        shipped = VariantManifest.model_validate(self.manifest(project_id, variant_id)).lineage
        with self._database.read() as session:
            job = session.get_one(JobRow, variant.job_id)
            dataset = session.get(DatasetRow, str(job.inputs.get("dataset_id")))
            return VariantLineage(
                variant_id=variant.id, job_id=job.id, parent_job_ids=_ancestors(session, job),
                teacher=job.spec["teacher"], model_id=job.inputs.get("model_id"),
                teacher_sha256=shipped.teacher_sha256, dataset_id=dataset.id if dataset else None,
                data_sha256=shipped.data_sha256, versions=shipped.versions, aliases=names_of(session, variant.id),
            )  # fmt: skip

    def file(self, project_id: str, variant_id: str, path: str) -> tuple[Path, Artifact]:
        """The bytes of one file, not to be changed, and its record; raise `NotFound` with the paths that there are."""
        artifact = self.artifact(project_id, variant_id, path)
        return self._artifacts.path(artifact.sha256), artifact

    def artifact(self, project_id: str, variant_id: str, path: str) -> Artifact:
        """The record of one file; raise `NotFound` with the paths that there are."""
        variant = self.get(project_id, variant_id)
        for artifact in variant.files:
            if artifact.path == path:
                return artifact
        there = ", ".join(artifact.path for artifact in variant.files)
        raise NotFound(f"variant {variant_id} has no file {path!r:.200}; its files are {there}")


def publish(session: Session, job: JobRow, new: NewVariant, now: float) -> Variant:
    """Write the rows of one variant of a job and return its record."""
    row = VariantRow(
        id=new_id("var"), project_id=job.project_id, job_id=job.id, target=new.manifest.target,
        parameters=new.manifest.parameters, fits_budget=new.manifest.fits_budget,
        bytes=sum(artifact.bytes for artifact in new.files), manifest_sha256=new.manifest_sha256, created_at=now,
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.add_all(VariantFileRow(variant_id=row.id, **artifact.model_dump()) for artifact in new.files)
    return _record(row, new.files)


def ids_by_job(session: Session, job_ids: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """The variants of each of these jobs, oldest first."""
    found: dict[str, tuple[str, ...]] = {}
    query = select(VariantRow.job_id, VariantRow.id).where(VariantRow.job_id.in_(job_ids)).order_by(VariantRow.id)
    for job_id, variant_id in session.execute(query):
        found[job_id] = (*found.get(job_id, ()), variant_id)
    return found


def _ancestors(session: Session, job: JobRow) -> tuple[str, ...]:
    found: list[str] = []
    parent = job.parent_id
    while parent is not None and len(found) < _MOST_ANCESTORS:
        found.append(parent)
        parent = session.scalar(select(JobRow.parent_id).where(JobRow.id == parent))
    return tuple(found)


def _records(session: Session, rows: Sequence[VariantRow]) -> Sequence[Variant]:
    files: dict[str, list[Artifact]] = {row.id: [] for row in rows}
    query = select(VariantFileRow).where(VariantFileRow.variant_id.in_(files)).order_by(VariantFileRow.path)
    for file in session.scalars(query):
        files[file.variant_id].append(
            Artifact(path=file.path, bytes=file.bytes, sha256=file.sha256, format=file.format)
        )
    return [_record(row, tuple(files[row.id])) for row in rows]


def _record(row: VariantRow, files: tuple[Artifact, ...]) -> Variant:
    return Variant(
        id=row.id, job_id=row.job_id, target=row.target, parameters=row.parameters, fits_budget=row.fits_budget,
        bytes=row.bytes, manifest_sha256=row.manifest_sha256, files=files, created_at=moment(row.created_at),
    )  # fmt: skip
