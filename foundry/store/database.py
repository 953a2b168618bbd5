"""The database: sessions to read and to write, its clock, its schema, its errors in our own words."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Double,
    Engine,
    Insert,
    Select,
    bindparam,
    create_engine,
    event,
    insert,
    literal_column,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from foundry.errors import DatabaseUnavailable, InvalidSettings, OperatorError, StorageFull
from foundry.store import audit, sqlite_file
from foundry.store.rows import Row, table_of
from foundry.store.sqlite_file import BUSY_S

_MIGRATING = 0x466F756E  # any number that no other user of the server takes for its advisory lock


class db_now(GenericFunction[float]):
    """Seconds since 1970 by the database's clock, the one clock that all workers share."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **_: Any) -> str:
    # Not now(): that is when the transaction began, perhaps long before it got the row's lock.
    return "EXTRACT(EPOCH FROM clock_timestamp())::double precision"


_NO_TRANSACTION: dict[str, dict[str, Any]] = {
    "postgresql": {"isolation_level": "AUTOCOMMIT"}, "sqlite": {sqlite_file.BEGINS: None},
}  # fmt: skip
_SIGNATURE = audit.signature(db_now())
_INSERT: dict[str, Callable[..., Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert_if_absent(session: Session, table: type[Row], **values: Any) -> bool:
    """Insert a row unless its key is taken, and say whether it was inserted.

    When another transaction holds the key, this waits until that one is committed or rolled back.
    """
    session.flush()  # what the row may point to
    connection = session.connection()
    clocked = frozenset(name for name, value in values.items() if isinstance(value, db_now))
    statement = _insert_if_absent(connection.dialect.name, table, clocked, frozenset(values) - clocked)
    given = {name: value for name, value in values.items() if name not in clocked}
    return connection.scalar(statement, given) is not None


@cache
def _insert_if_absent(dialect: str, table: type[Row], clocked: frozenset[str], given: frozenset[str]) -> Any:
    """Built once for each kind of row: building it costs more than sending it."""
    values: dict[str, Any] = {name: db_now() for name in clocked} | {name: bindparam(name) for name in given}
    return _INSERT[dialect](table_of(table)).values(values).on_conflict_do_nothing().returning(literal_column("1"))


def insert_rows(session: Session, table: type[Row], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that nobody goes on to change, without objects for a session to look after.

    What they point to must be in the database already: the session's own objects are not written first.
    """
    if rows:
        session.connection().execute(_insert(table), rows)


@cache
def _insert(table: type[Row]) -> Insert:
    return insert(table_of(table))


class Database:
    """One SQLite file (one machine) or one PostgreSQL database (any number of them)."""

    def __init__(self, url: str) -> None:
        self.url = _parse(url)
        self._reader = _engine(self.url)
        self._writer = self._reader.execution_options(**{sqlite_file.BEGINS: sqlite_file.TO_WRITE})
        self._writing = threading.RLock() if self.url.get_backend_name() == "sqlite" else None
        self._looker = self._reader.execution_options(**_NO_TRANSACTION[self.url.get_backend_name()])

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment and changes nothing."""
        with self._translated(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    def look(self, statement: Select[Any], **values: object) -> Sequence[Any]:
        """The rows of one statement. For those that every request sends: without session and transaction."""
        with self._translated(), self._looker.connect() as connection:
            return connection.execute(statement, values).all()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or not at all when the block raises."""
        with self._translated(), self._turn(), Session(self._writer, expire_on_commit=False) as session:
            with session.begin():
                yield session
                if audit.acting.get() is not None:
                    audit.sign(session, _SIGNATURE)
            audit.committed()

    def upgrade(self) -> None:
        """Bring the schema to the newest revision. Safe when several processes do it at once."""
        with self.schema_change() as connection:
            command.upgrade(_alembic(connection), "head")

    def downgrade(self, revision: str) -> None:
        """Bring the schema back to an earlier revision; `base` removes everything."""
        with self.schema_change() as connection:
            command.downgrade(_alembic(connection), revision)

    @contextmanager
    def schema_change(self) -> Iterator[Connection]:
        """The one transaction that may change the schema now; its statements may take as long as they need."""
        with (
            self._translated(),
            self._writer.connect() as connection,
            sqlite_file.loose_keys(connection),
            connection.begin(),
        ):
            if self.url.get_backend_name() == "postgresql":
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
            yield connection

    def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers and has the schema of this version or of a later one.

        A later schema only adds: while a deploy goes on, programs of the version before must work with it.
        """
        with self._translated(), self._reader.connect() as connection:
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if (found or "") < (_newest_revision() or ""):
            raise DatabaseUnavailable(
                f"the database's schema is at revision {found}, this version needs {_newest_revision()}. "
                "Run: alembic upgrade head"
            )

    def close(self) -> None:
        """Let go of every connection."""
        self._reader.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """SQLite has one writer at a time: a thread goes on when the one before has ended, without asking SQLite."""
        if self._writing is None:
            yield
            return
        began = time.monotonic()
        if not self._writing.acquire(timeout=sqlite_file.BUSY_S):
            raise self._unavailable(TimeoutError(f"others have been writing for {sqlite_file.BUSY_S} s"))
        left = sqlite_file.left_s.set(max(0.0, sqlite_file.BUSY_S - (time.monotonic() - began)))
        try:
            yield
        finally:
            sqlite_file.left_s.reset(left)
            self._writing.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise self._unavailable(error) from error
        except DBAPIError as error:
            if error.orig is not None and (reason := self._reason(error.orig, error.connection_invalidated)):
                raise reason from error
            raise

    def _reason(self, cause: BaseException, disconnected: bool) -> OperatorError | None:
        """What an operator should know; None for a mistake of ours."""
        if _is_full(cause):
            return StorageFull(f"the disk of the database {self._where} is full. Make room there; nothing was written")
        if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            return DatabaseUnavailable(f"the database {self._where} lacks a table. Run: alembic upgrade head")
        transient = isinstance(cause, sqlite3.OperationalError | psycopg.OperationalError | psycopg.InterfaceError)
        broken_file = type(cause) is sqlite3.DatabaseError
        return self._unavailable(cause) if transient or broken_file or disconnected else None

    def _unavailable(self, cause: BaseException) -> DatabaseUnavailable:
        first_line = next(iter(str(cause).splitlines()), type(cause).__name__)
        hint = ". Run: alembic upgrade head" if first_line.startswith("no such") else ""
        return DatabaseUnavailable(f"the database {self._where} does not answer: {first_line}{hint}")

    @property
    def _where(self) -> str:
        return self.url.render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise InvalidSettings(f"FOUNDRY_DATABASE_URL is not a database URL: {error}") from error
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed.set(drivername="sqlite")
    raise InvalidSettings(
        f"FOUNDRY_DATABASE_URL={parsed.render_as_string(hide_password=True)}: "
        "use sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    )


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        engine = create_engine(
            url, pool_pre_ping=True, pool_timeout=BUSY_S, pool_size=5, max_overflow=15,
            connect_args={"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3},
        )  # fmt: skip
        event.listen(engine, "connect", _bound_postgresql)
        return engine
    Path(str(url.database)).absolute().parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S}, pool_timeout=BUSY_S, pool_size=5, max_overflow=15)
    event.listen(engine, "connect", sqlite_file.set_up)
    event.listen(engine, "begin", sqlite_file.begin)
    return engine


def _bound_postgresql(connection: psycopg.Connection, _record: object) -> None:
    connection.autocommit = True
    connection.execute(f"SET statement_timeout = '{BUSY_S}s'")
    connection.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.autocommit = False


def _is_full(cause: object) -> bool:
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(cause, psycopg.errors.DiskFull)


def _alembic(connection: Connection | None = None) -> Config:
    """Configuration for alembic as a library; `migrations/env.py` uses the connection when there is one."""
    folder = Path(__file__).parents[2] / "migrations"
    if not folder.is_dir():
        raise OperatorError(
            f"no migrations at {folder}: the service runs from a checkout or an image. "
            "Clone the repository and install it with: pip install -e '.[server]'"
        )
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def _newest_revision() -> str | None:
    return ScriptDirectory.from_config(_alembic()).get_current_head()
