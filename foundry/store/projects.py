"""Projects and their members."""

from collections.abc import Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from foundry.errors import NameTaken, NotFound
from foundry.spec.access import PROJECT_SCOPES, AuditEvent, IssuedKey, Member, Project, Quota, Role
from foundry.spec.resources import Page
from foundry.store import audit
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.idempotency import take_key
from foundry.store.ids import new_id
from foundry.store.keys import Keys, revoke_where
from foundry.store.pages import moment, page_of
from foundry.store.project_tables import MemberRow
from foundry.store.records import Idempotency
from foundry.store.tables import ApiKeyRow, ProjectRow

_QUOTA = select(ProjectRow.__table__.c.quota, db_now()).where(ProjectRow.__table__.c.id == bindparam("project_id"))
_QUOTA_LOCKED = _QUOTA.with_for_update()
_NOW = select(db_now())


class Projects:
    """Tenants. Whoever may call `create` and `set_quota` runs the installation."""

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys

    def create(
        self, caller_project: str, name: str, quota: Quota, idempotency: Idempotency | None = None
    ) -> tuple[Project, IssuedKey]:
        """A project and its first key, which may do all that can be done in it; raise `NameTaken`."""
        project_id = new_id("prj")
        with self._database.write() as session:
            if made := take_key(session, caller_project, idempotency, project_id):
                first = select(ApiKeyRow.id).where(ApiKeyRow.project_id == made).order_by(ApiKeyRow.id).limit(1)
                key = self._keys.get(made, session.scalars(first).one())
                return _project(session.get_one(ProjectRow, made)), IssuedKey(**key.model_dump(), key=None)
            if not insert_if_absent(
                session, ProjectRow, id=project_id, name=name, quota=quota.model_dump(), created_at=db_now()
            ):
                raise NameTaken(f"there is a project {name!r} already; choose another name", pointer="/name")
            issued = self._keys.issue(session, project_id, "first key", PROJECT_SCOPES)
            return _project(session.get_one(ProjectRow, project_id)), issued

    def get(self, project_id: str) -> Project:
        """One project; raise `NotFound`."""
        with self._database.read() as session:
            return _project(_find(session, project_id))

    def list(self, limit: int = 20, after: str | None = None, only: str | None = None) -> Page[Project]:
        """Newest first; `only` one, for a caller who sees no other."""
        query = select(ProjectRow)
        if only is not None:
            query = query.where(ProjectRow.id == only)
        with self._database.read() as session:
            return page_of(session, query, ProjectRow.id, limit, after, _projects)

    def set_quota(self, project_id: str, quota: Quota) -> Project:
        """Allow this much from now on; limits that `quota` was made without stay. Raises `NotFound`.

        What goes beyond it already stays.
        """
        with self._database.write() as session:
            row = _find(session, project_id, lock=True)
            row.quota = row.quota | quota.model_dump(exclude_unset=True)
            return _project(row)

    def audit(
        self, project_id: str, limit: int = 20, after: str | None = None, object_id: str | None = None
    ) -> Page[AuditEvent]:
        """Every write of the project's callers, newest first; of one object or of all."""
        with self._database.read() as session:
            return audit.events(session, project_id, limit, after, object_id)


class Members:
    """Members of projects; another project's member is `NotFound`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, project_id: str, name: str, role: Role, idempotency: Idempotency | None = None) -> Member:
        """Add a member; raise `NameTaken`."""
        member_id = new_id("mem")
        with self._database.write() as session:
            made = take_key(session, project_id, idempotency, member_id)
            if made is None and not insert_if_absent(
                session, MemberRow, id=member_id, project_id=project_id, name=name, role=role.value, created_at=db_now()
            ):
                raise NameTaken(f"{name!r} is a member already", pointer="/name")
        return self.get(project_id, made or member_id)

    def get(self, project_id: str, member_id: str) -> Member:
        """One member; raise `NotFound`."""
        with self._database.read() as session:
            return _member(_find_member(session, project_id, member_id))

    def list(self, project_id: str, limit: int = 20, after: str | None = None) -> Page[Member]:
        """Newest first."""
        query = select(MemberRow).where(MemberRow.project_id == project_id)
        with self._database.read() as session:
            return page_of(session, query, MemberRow.id, limit, after, _members)

    def set_role(self, project_id: str, member_id: str, role: Role) -> Member:
        """Their keys reach as far as the new role from the next request on."""
        with self._database.write() as session:
            row = _find_member(session, project_id, member_id)
            row.role = role.value
            return _member(row)

    def remove(self, project_id: str, member_id: str) -> None:
        """Take the member out and revoke all their keys; raise `NotFound`."""
        with self._database.write() as session:
            row = _find_member(session, project_id, member_id)
            revoke_where(session, ApiKeyRow.member_id == member_id)
            session.delete(row)


def quota_of(session: Session, project_id: str, *, lock: bool = False) -> Quota:
    """What a project may use. `lock` holds other transactions that ask the same until this one ends."""
    return quota_now(session, project_id, lock=lock)[0]


def quota_now(session: Session, project_id: str, *, lock: bool = False) -> tuple[Quota, float]:
    """What a project may use, and the moment of this look by the database's clock."""
    query = _QUOTA_LOCKED if lock else _QUOTA
    quota, now = session.connection().execute(query, {"project_id": project_id}).one()
    if lock:  # PostgreSQL looked at the clock before it waited for the row
        now = session.connection().scalar(_NOW)
    return Quota.model_validate(quota), now


def _find(session: Session, project_id: str, *, lock: bool = False) -> ProjectRow:
    row = session.get(ProjectRow, project_id, with_for_update=lock or None)
    if row is None:
        raise NotFound(f"no project {project_id!r}")
    return row


def _find_member(session: Session, project_id: str, member_id: str) -> MemberRow:
    row = session.get(MemberRow, member_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no member {member_id!r} in this project")
    return row


def _projects(_: Session, rows: Sequence[ProjectRow]) -> Sequence[Project]:
    return [_project(row) for row in rows]


def _project(row: ProjectRow) -> Project:
    return Project(id=row.id, name=row.name, quota=Quota.model_validate(row.quota), created_at=moment(row.created_at))


def _members(_: Session, rows: Sequence[MemberRow]) -> Sequence[Member]:
    return [_member(row) for row in rows]


def _member(row: MemberRow) -> Member:
    return Member(id=row.id, name=row.name, role=Role(row.role), created_at=moment(row.created_at))
