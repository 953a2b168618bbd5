"""Devices that a project described itself. A job that names one gets it as it stood when the job was submitted."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from foundry.errors import NameTaken, NotFound, QuotaExceeded
from foundry.spec.device import device_profiles
from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.resources import Target
from foundry.store import audit
from foundry.store.database import Database, db_now
from foundry.store.project_tables import TargetRow

_MOST = 200


class Targets:
    """Every method takes the project of the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, project_id: str, target: CustomTarget, description: str) -> Target:
        """Describe a device, or describe it anew.

        Raises `NameTaken` when the service has a device of this name, and `QuotaExceeded` beyond 200.
        """
        if target.name in device_profiles():
            raise NameTaken(f"{target.name!r} is a device of the service; choose another name", pointer="/name")
        audit.about(target.name)
        with self._database.write() as session:
            row = session.get(TargetRow, (project_id, target.name))
            if row is None:
                count = session.scalars(select(func.count()).where(TargetRow.project_id == project_id)).one()
                if count >= _MOST:
                    raise QuotaExceeded(f"a project may describe {_MOST} targets; delete one first")
                now = session.scalars(select(db_now())).one()
                row = TargetRow(project_id=project_id, name=target.name, created_at=now)
                session.add(row)
            row.description, row.spec = description, target.model_dump(mode="json")
            return _record(row)

    def get(self, project_id: str, name: str) -> Target:
        """One described device; raise `NotFound`."""
        with self._database.read() as session:
            return _record(_find(session, project_id, name))

    def all(self, project_id: str) -> list[Target]:
        """By name; there are never many."""
        query = select(TargetRow).where(TargetRow.project_id == project_id).order_by(TargetRow.name)
        with self._database.read() as session:
            return [_record(row) for row in session.scalars(query)]

    def delete(self, project_id: str, name: str) -> None:
        """Forget a device; jobs that named it keep what it was. Raises `NotFound`."""
        with self._database.write() as session:
            session.delete(_find(session, project_id, name))

    def resolve(self, project_id: str, spec: JobSpec) -> JobSpec:
        """The spec with the project's own targets written out; other names stay as they are."""
        named = [target for target in spec.targets if isinstance(target, str)]
        if not named:
            return spec
        query = select(TargetRow).where(TargetRow.project_id == project_id, TargetRow.name.in_(named))
        with self._database.read() as session:
            own = {row.name: CustomTarget.model_validate(row.spec) for row in session.scalars(query)}
        if not own:
            return spec
        return spec.model_copy(
            update={"targets": tuple(own.get(t, t) if isinstance(t, str) else t for t in spec.targets)}
        )


def _find(session: Session, project_id: str, name: str) -> TargetRow:
    row = session.get(TargetRow, (project_id, name))
    if row is None:
        raise NotFound(f"no target {name!r} of this project's own")
    return row


def _record(row: TargetRow) -> Target:
    spec = CustomTarget.model_validate(row.spec)
    return Target(
        name=row.name, description=row.description, custom=True, memory_bytes=spec.memory_bytes,
        max_bytes=spec.file_and_cache_bytes, max_params=spec.max_params,
        memory_bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s, compute_ops_per_s=spec.compute_ops_per_s,
        context_tokens=spec.context_tokens, minimum_tokens_per_s=spec.minimum_tokens_per_s, format=spec.format,
    )  # fmt: skip
