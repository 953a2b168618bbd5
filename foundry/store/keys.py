"""Projects and the keys that act for them. A key is 256 random bits; only its HMAC is stored."""

import hmac
import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select, update

from foundry.errors import NotFound, Unauthorized
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.ids import new_id
from foundry.store.pages import moment
from foundry.store.tables import ApiKeyRow, ProjectRow

_KEY = re.compile(r"fdy_(?P<id>[0-9a-z]{24})_(?P<secret>[0-9a-f]{64})", re.ASCII)
_DEFAULT_PROJECT = "default"


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """Who is asking. The plaintext is shown once, when the key is made."""

    id: str
    project_id: str
    name: str
    created_at: datetime


class Keys:
    """API keys of all projects. `secret` is the installation's own, from `read_or_make_secret`."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._database = database
        self._secret = secret

    def create(self, project_id: str, name: str) -> tuple[ApiKey, str]:
        """Make a key; return its record and its plaintext `fdy_<id>_<secret>`."""
        key_id = new_id("key")
        plaintext = f"fdy_{key_id.removeprefix('key_')}_{secrets.token_hex(32)}"
        with self._database.write() as session:
            if session.get(ProjectRow, project_id) is None:
                raise NotFound(f"no project {project_id!r}")
            now = session.scalars(select(db_now())).one()
            row = ApiKeyRow(
                id=key_id,
                project_id=project_id,
                name=name,
                digest=self._digest(plaintext),
                created_at=now,
                revoked_at=None,
            )
            session.add(row)
        return _record(row), plaintext

    def authenticate(self, plaintext: str) -> ApiKey:
        """The key's record; raise `Unauthorized` without saying which part was wrong."""
        match = _KEY.fullmatch(plaintext)
        if match is not None:
            with self._database.read() as session:
                row = session.get(ApiKeyRow, f"key_{match['id']}")
            if row is not None and row.revoked_at is None and hmac.compare_digest(row.digest, self._digest(plaintext)):
                return _record(row)
        raise Unauthorized(
            "the API key is missing, wrong or revoked. Send it as the header 'Authorization: Bearer fdy_...'; "
            "`foundry up` prints where the first key of an installation is kept"
        )

    def revoke(self, project_id: str, key_id: str) -> None:
        """Refuse the key from now on; revoking twice is no error."""
        with self._database.write() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None or row.project_id != project_id:
                raise NotFound(f"no API key {key_id!r} in this project")
            session.execute(
                update(ApiKeyRow)
                .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
                .values(revoked_at=db_now())
            )

    def ensure_default_project(self) -> str:
        """The id of the project that `foundry up` works in; made on first use."""
        return self.create_project(_DEFAULT_PROJECT)

    def create_project(self, name: str) -> str:
        """The id of the project of this name, made when there is none."""
        with self._database.write() as session:
            insert_if_absent(session, ProjectRow, id=new_id("prj"), name=name, created_at=db_now())
            return session.scalars(select(ProjectRow.id).where(ProjectRow.name == name)).one()

    def _digest(self, plaintext: str) -> str:
        return hmac.digest(self._secret, plaintext.encode(), "sha256").hex()


def _record(row: ApiKeyRow) -> ApiKey:
    return ApiKey(id=row.id, project_id=row.project_id, name=row.name, created_at=moment(row.created_at))


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
