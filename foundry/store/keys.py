"""The keys that act for projects. A key is 256 random bits; only its HMAC is stored."""

import hmac
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from foundry.errors import NotFound, StateConflict, Unauthorized
from foundry.spec.access import PROJECT_SCOPES, ROLE_SCOPES, ApiKey, IssuedKey, Role, Scope
from foundry.spec.resources import Page
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.idempotency import take_key
from foundry.store.ids import new_id
from foundry.store.pages import moment, page_of
from foundry.store.project_tables import MemberRow
from foundry.store.records import Idempotency
from foundry.store.tables import ApiKeyRow, ProjectRow

_KEY = re.compile(r"fdy_(?P<id>[0-9a-z]{24})_(?P<secret>[0-9a-f]{64})", re.ASCII)
_DEFAULT_PROJECT = "default"
_USE_NOTED_S = 3600.0
_WITH_ROLE = (
    select(*ApiKeyRow.__table__.c, MemberRow.__table__.c.role, db_now().label("now"))
    .outerjoin(MemberRow.__table__, MemberRow.__table__.c.id == ApiKeyRow.__table__.c.member_id)
    .where(ApiKeyRow.__table__.c.id == bindparam("key_id"))
)
"""One key and its member's role."""


class Keys:
    """API keys of all projects. `secret` is the installation's own, from `read_or_make_secret`."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._database = database
        self._secret = secret

    def create(
        self, project_id: str, name: str, scopes: Iterable[Scope] = PROJECT_SCOPES, *, member_id: str | None = None,
        lives_s: float | None = None, idempotency: Idempotency | None = None,
    ) -> tuple[ApiKey, str]:  # fmt: skip
        """Make a key; return its record and its plaintext `fdy_<id>_<secret>`, which is empty for a repeated request.

        Raises `NotFound` for the project or the member.
        """
        with self._database.write() as session:
            issued = self.issue(
                session, project_id, name, scopes, member_id=member_id, lives_s=lives_s, idempotency=idempotency
            )
        return self.get(project_id, issued.id), issued.key or ""

    def issue(
        self, session: Session, project_id: str, name: str, scopes: Iterable[Scope], *, member_id: str | None = None,
        lives_s: float | None = None, idempotency: Idempotency | None = None,
    ) -> IssuedKey:  # fmt: skip
        """Make a key within a transaction; raise `NotFound` for the project or the member."""
        if session.get(ProjectRow, project_id) is None:
            raise NotFound(f"no project {project_id!r}")
        if member_id is not None and _role(session, project_id, member_id) is None:
            raise NotFound(f"no member {member_id!r} in this project", pointer="/member_id")
        key_id = new_id("key")
        if made := take_key(session, project_id, idempotency, key_id):
            row = session.get_one(ApiKeyRow, made)
            return IssuedKey(**_record(row, _role(session, project_id, row.member_id)).model_dump(), key=None)
        plaintext = f"fdy_{key_id.removeprefix('key_')}_{secrets.token_hex(32)}"
        now = session.scalars(select(db_now())).one()
        row = ApiKeyRow(
            id=key_id, project_id=project_id, name=name, digest=self._digest(plaintext), member_id=member_id,
            scopes=sorted(scope.value for scope in scopes), created_at=now,
            expires_at=None if lives_s is None else now + lives_s,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return IssuedKey(**_record(row, _role(session, project_id, member_id)).model_dump(), key=plaintext)

    def authenticate(self, plaintext: str) -> ApiKey:
        """The key's record; raise `Unauthorized` without saying which part was wrong."""
        match = _KEY.fullmatch(plaintext)
        if match is not None:
            for row in self._database.look(_WITH_ROLE, key_id=f"key_{match['id']}"):
                if self._opens(row, plaintext, now=row.now):
                    if row.last_used_at is None or row.now - row.last_used_at > _USE_NOTED_S:
                        self._note_use(row.id)
                    return _record(row, row.role)
        raise Unauthorized(
            "the API key is missing, wrong, expired or revoked. Send it as the header 'Authorization: Bearer fdy_...'; "
            "`foundry up` prints where the first key of an installation is kept"
        )

    def recall(self, key_id: str) -> ApiKey:
        """The record of a key that was authenticated before; raise `Unauthorized` when it has ended since."""
        with self._database.read() as session:
            row = session.get(ApiKeyRow, key_id)
            now = session.scalars(select(db_now())).one()
            if row is not None and not _is_ended(row, now):
                return _record(row, _role(session, row.project_id, row.member_id))
        raise Unauthorized("the API key of this session has expired or was revoked; sign in with another")

    def _opens(self, row: ApiKeyRow, plaintext: str, *, now: float) -> bool:
        return hmac.compare_digest(row.digest, self._digest(plaintext)) and not _is_ended(row, now)

    def _note_use(self, key_id: str) -> None:
        with self._database.write() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(last_used_at=db_now()))

    def get(self, project_id: str, key_id: str) -> ApiKey:
        """One key, without its secret; raise `NotFound`."""
        with self._database.read() as session:
            row = _find(session, project_id, key_id)
            return _record(row, _role(session, project_id, row.member_id))

    def list(self, project_id: str, limit: int = 20, after: str | None = None) -> Page[ApiKey]:
        """Newest first, those that have ended too; `after` is the `next` of the page before."""
        query = select(ApiKeyRow).where(ApiKeyRow.project_id == project_id)
        with self._database.read() as session:
            return page_of(session, query, ApiKeyRow.id, limit, after, _records)

    def rotate(self, project_id: str, key_id: str, grace_s: float, idempotency: Idempotency | None = None) -> IssuedKey:
        """A new key that may do the same; the old one ends `grace_s` from now. Raises `StateConflict` when it has."""
        with self._database.write() as session:
            old = _find(session, project_id, key_id)
            now = session.scalars(select(db_now())).one()
            scopes = [Scope(scope) for scope in old.scopes]
            new = self.issue(
                session, project_id, old.name, scopes, member_id=self._living(session, old), idempotency=idempotency
            )
            if new.key is not None:
                if _is_ended(old, now):
                    raise StateConflict(f"API key {key_id} has ended and cannot be rotated: make a new one")
                end = now + grace_s
                old.expires_at = end if old.expires_at is None else min(old.expires_at, end)
        return new

    def revoke(self, project_id: str, key_id: str) -> None:
        """Refuse the key from now on; revoking twice is no error."""
        with self._database.write() as session:
            _find(session, project_id, key_id)
            revoke_where(session, ApiKeyRow.id == key_id)

    def ensure_default_project(self) -> str:
        """The id of the project that `foundry up` works in; made on first use."""
        return self.create_project(_DEFAULT_PROJECT)

    def create_project(self, name: str) -> str:
        """The id of the project of this name, made when there is none."""
        with self._database.write() as session:
            insert_if_absent(session, ProjectRow, id=new_id("prj"), name=name, quota={}, created_at=db_now())
            return session.scalars(select(ProjectRow.id).where(ProjectRow.name == name)).one()

    def _living(self, session: Session, row: ApiKeyRow) -> str | None:
        return row.member_id if _role(session, row.project_id, row.member_id) else None

    def _digest(self, plaintext: str) -> str:
        return hmac.digest(self._secret, plaintext.encode(), "sha256").hex()


def revoke_where(session: Session, condition: object) -> None:
    """End all keys of a kind that have not ended yet."""
    session.execute(
        update(ApiKeyRow).where(condition, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=db_now())  # type: ignore[arg-type]
    )


def _is_ended(row: ApiKeyRow, now: float) -> bool:
    return row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now)


def _find(session: Session, project_id: str, key_id: str) -> ApiKeyRow:
    row = session.get(ApiKeyRow, key_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no API key {key_id!r} in this project")
    return row


def _role(session: Session, project_id: str, member_id: str | None) -> str | None:
    if member_id is None:
        return None
    row = session.get(MemberRow, member_id)
    return row.role if row is not None and row.project_id == project_id else None


def _records(session: Session, rows: Sequence[ApiKeyRow]) -> Sequence[ApiKey]:
    ids = {row.member_id for row in rows if row.member_id}
    roles = {row.id: row.role for row in session.scalars(select(MemberRow).where(MemberRow.id.in_(ids)))}
    return [_record(row, roles.get(row.member_id or "")) for row in rows]


def _record(row: ApiKeyRow, role: str | None) -> ApiKey:
    scopes = frozenset(Scope(scope) for scope in row.scopes)
    if row.member_id is not None:
        scopes &= ROLE_SCOPES[Role(role)] if role else frozenset()
    ends = {name: getattr(row, name) for name in ("expires_at", "last_used_at", "revoked_at")}
    return ApiKey(
        id=row.id, project_id=row.project_id, name=row.name, scopes=tuple(sorted(scopes)), member_id=row.member_id,
        created_at=moment(row.created_at),
        **{name: None if at is None else moment(at) for name, at in ends.items()},
    )  # fmt: skip


def read_or_make_secret(path: Path) -> bytes:
    """The installation's secret, readable by its owner alone; whoever comes first makes it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(aside, path)  # fails when another process was quicker: its secret counts
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    return path.read_bytes()
