"""A database in one SQLite file: how its connections are set up and how its transactions begin."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy.engine import Connection

BUSY_S = 30
"""How long a writer waits for other writers, be they of its process or not; and how long anyone waits for one of the
pool's connections, which a writer asks for between the two."""
left_s: ContextVar[float | None] = ContextVar("left_s", default=None)
"""What the wait for writers of its own process has left of it to the writer that has its turn."""
BEGINS = "foundry_begins"
"""The option of a connection that says how its transactions begin; None for one that has no transactions."""
TO_WRITE = "BEGIN IMMEDIATE"
"""Takes the write lock at once. A transaction that reads first and writes later could not wait for it: SQLite would
answer "database is locked" without heeding the timeout."""
_ASK_AGAIN_S = 0.002


def set_up(connection: sqlite3.Connection, _record: object) -> None:
    """Settings of every connection."""
    connection.isolation_level = None  # the driver must not begin transactions: `begin` does
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def begin(connection: Connection) -> None:
    """Begin a transaction in the way of its connection."""
    how = connection.get_execution_options().get(BEGINS, "BEGIN")
    if how == TO_WRITE:
        _begin_to_write(connection)
    elif how is not None:
        connection.exec_driver_sql(how)


def _begin_to_write(connection: Connection) -> None:
    """Wait until no other process writes. SQLite's own way of waiting sleeps for up to 100 ms at a time, so that
    whoever asks more often goes first: of two processes under load one had to wait for seconds."""
    raw: Any = connection.connection.driver_connection
    left = left_s.get()
    deadline = time.monotonic() + (BUSY_S if left is None else left)
    raw.execute("PRAGMA busy_timeout = 0").close()
    try:
        while True:
            try:
                raw.execute(TO_WRITE).close()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    break
            time.sleep(_ASK_AGAIN_S)
        connection.exec_driver_sql(TO_WRITE)  # fails in the way that every statement fails
    finally:
        raw.execute(f"PRAGMA busy_timeout = {1000 * BUSY_S}").close()


@contextmanager
def loose_keys(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew and dropping the old one: rows that point to it must not mind."""
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        yield
        return
    raw.execute("PRAGMA foreign_keys = OFF").close()
    try:
        yield
    finally:
        raw.execute("PRAGMA foreign_keys = ON").close()
