"""Sessions, the database's clock and the translation of its errors, on SQLite and PostgreSQL."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from sqlalchemy import func, select, text

from foundry.errors import DatabaseUnavailable, InvalidSettings
from foundry.store import database as database_module
from foundry.store import sqlite_file
from foundry.store.database import Database, db_now
from foundry.store.projects import quota_now
from foundry.store.tables import ProjectRow
from tests import factories
from tests.servers import Postgres


def test_clock_gives_seconds_since_1970_with_fractions(database: Database) -> None:
    with database.read() as session:
        first = session.scalars(select(db_now())).one()
    time.sleep(0.02)
    with database.read() as session:
        second = session.scalars(select(db_now())).one()
    assert abs(first - time.time()) < 5
    assert 0.015 < second - first < 2


@pytest.mark.integration
def test_clock_moves_within_a_postgresql_transaction(postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.write() as session:
        first = session.scalars(select(db_now())).one()
        time.sleep(0.02)
        assert session.scalars(select(db_now())).one() > first
    database.close()


@pytest.mark.integration
def test_the_moment_of_a_locked_quota_is_after_the_wait_for_the_lock(postgres_url: str) -> None:
    database = Database(postgres_url)
    project_id = factories.project(database)
    waiting = select(func.count()).select_from(text("pg_locks")).where(text("NOT granted"))
    moments: list[float] = []

    def ask() -> None:
        with database.write() as session:
            moments.append(quota_now(session, project_id, lock=True)[1])

    thread = threading.Thread(target=ask)
    with database.write() as session:
        quota_now(session, project_id, lock=True)
        thread.start()
        while thread.is_alive() and not database.look(waiting)[0][0]:
            time.sleep(0.002)
        released = session.scalars(select(db_now())).one()
    thread.join()
    database.close()
    assert moments[0] > released


def test_write_leaves_nothing_when_the_block_raises(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as session:
        session.add(ProjectRow(id="prj_1", name="one", created_at=0.0))
        session.flush()
        raise RuntimeError
    with database.read() as session:
        assert session.scalars(select(ProjectRow)).all() == []


def test_text_that_postgresql_refuses_is_stored_alike_everywhere(database: Database) -> None:
    with database.write() as session:
        session.add(ProjectRow(id="prj_1", name="a\0b \ud800 é 😀", created_at=0.0))
    with database.read() as session:
        assert session.scalars(select(ProjectRow.name)).one() == "a�b � é 😀"
        assert session.scalars(select(ProjectRow.id).where(ProjectRow.id == "prj\0")).all() == []


def test_ping_passes_when_the_schema_is_the_newest(database: Database) -> None:
    database.ping()


def test_ping_names_the_command_when_the_schema_is_missing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new' / 'empty.db'}")
    with pytest.raises(DatabaseUnavailable, match="alembic upgrade head"):
        database.ping()
    database.close()


def test_database_is_unavailable_when_the_file_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"this is no database" * 100)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(DatabaseUnavailable, match=r"broken\.db"):
        database.ping()
    database.close()


def test_database_is_unavailable_without_its_password_when_nobody_listens() -> None:
    database = Database("postgresql://me:hidden@127.0.0.1:1/foundry")
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1") as raised:
        database.ping()
    assert "hidden" not in raised.value.message
    database.close()


@pytest.mark.integration
def test_session_is_unavailable_once_and_works_again_when_the_server_drops_its_connections(
    postgres: Postgres, postgres_url: str
) -> None:
    database = Database(postgres_url)
    with pytest.raises(DatabaseUnavailable), database.write() as session:
        session.execute(text("SELECT 1"))
        postgres.drop_connections()
        session.execute(text("SELECT 1"))
    database.ping()
    database.close()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/name", "sqlite://", "sqlite:///:memory:", "oracle9://x/y"]
)
def test_database_url_is_refused_with_the_two_that_work(url: str) -> None:
    with pytest.raises(InvalidSettings, match="FOUNDRY_DATABASE_URL"):
        Database(url)


def test_sqlite_is_set_up_to_survive_a_power_cut(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
    database.close()


def test_writers_wait_for_each_other_when_they_read_before_they_write(database: Database) -> None:
    with database.write() as session:
        session.add(ProjectRow(id="prj_1", name="", created_at=0.0))

    def append(letter: str) -> None:
        with database.write() as session:
            project = session.get_one(ProjectRow, "prj_1", with_for_update=True)
            time.sleep(0.01)
            project.name += letter

    threads = [threading.Thread(target=append, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert sorted(session.scalars(select(ProjectRow.name)).one()) == list("abcdefgh")


def test_a_writer_of_another_process_is_waited_for(sqlite_url: str) -> None:
    ours, theirs = Database(sqlite_url), Database(sqlite_url)  # each with a turn of its own, as in two processes
    began, order = threading.Event(), list[str]()

    def write() -> None:
        with theirs.write() as session:
            session.connection()
            began.set()
            time.sleep(0.05)
            order.append("theirs")

    thread = threading.Thread(target=write)
    thread.start()
    assert began.wait(10)
    with ours.write() as session:
        session.connection()
        order.append("ours")
    thread.join()
    assert order == ["theirs", "ours"]


def test_database_is_unavailable_when_another_process_writes_for_too_long(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Database(sqlite_url), Database(sqlite_url)
    with theirs.write() as session:
        session.connection()
        monkeypatch.setattr(sqlite_file, "BUSY_S", 0)
        with pytest.raises(DatabaseUnavailable, match="locked"), ours.write() as refused:
            refused.connection()
    with ours.write() as session:
        session.connection()


def test_a_writer_does_not_wait_anew_for_other_processes_when_its_own_took_all_the_time(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_: float) -> NoReturn:
        pytest.fail("it goes on waiting")

    ours, theirs = Database(sqlite_url), Database(sqlite_url)
    with theirs.write() as session:
        session.connection()
        turn_comes_late = iter([0.0, sqlite_file.BUSY_S + 1.0])
        monkeypatch.setattr(database_module, "time", SimpleNamespace(monotonic=turn_comes_late.__next__))
        monkeypatch.setattr(sqlite_file, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        with pytest.raises(DatabaseUnavailable, match="locked"), ours.write() as refused:
            refused.connection()
    for database in (ours, theirs):
        database.close()
