"""Databases and servers for every test that asks for one. Servers start when first asked for and stop at the end."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from foundry.store.database import Database
from foundry.store.tables import Row
from tests.servers import Postgres, Redis, running_postgres, running_redis


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def redis_server() -> Iterator[Redis]:
    """A real Redis server that the test may stop and start."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres) -> str:
    """The URL of a PostgreSQL database with the newest schema, shared by all tests one after the other."""
    url = postgres.new_database()
    _upgrade(url)
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    """A migrated SQLite database of the test's own."""
    return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'foundry.db')}"


@pytest.fixture
def postgres_url(migrated_postgres: str) -> Iterator[str]:
    """A migrated PostgreSQL database without rows. Emptying takes a hundredth of the time of making one."""
    yield migrated_postgres
    with psycopg.connect(migrated_postgres) as connection:
        connection.execute("SET lock_timeout = '10s'")
        for table in reversed(Row.metadata.sorted_tables):
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of each kind: what holds on one must hold on the other."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database of each kind."""
    database = Database(database_url)
    yield database
    database.close()


def _upgrade(url: str) -> None:
    database = Database(url)
    database.upgrade()
    database.close()
