"""The migrations give the schema that the tables describe, up and down, on both databases."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text

from foundry.errors import DatabaseUnavailable
from foundry.spec.access import PROJECT_SCOPES, Scope
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.keys import Keys
from foundry.store.settings import Settings
from foundry.store.tables import Row
from tests import factories
from tests.servers import Postgres

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.integration


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database()


def tables(database: Database) -> set[str]:
    with database.schema_change() as connection:
        return set(inspect(connection).get_table_names())


def test_upgrade_gives_exactly_the_tables_of_the_code(empty_url: str) -> None:
    database = Database(empty_url)
    database.upgrade()
    with database.schema_change() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Row.metadata)
        checks = {str(check["name"]) for check in inspect(connection).get_check_constraints("jobs")}
    assert differences == []
    assert checks == {"ck_jobs_status_known", "ck_jobs_lease_while_held"}  # alembic does not compare these
    database.ping()
    database.close()


def test_downgrade_to_base_removes_every_table_and_upgrade_brings_them_back(empty_url: str) -> None:
    database = Database(empty_url)
    database.upgrade()
    factories.project(database)
    database.downgrade("base")
    assert tables(database) <= {"alembic_version"}
    with pytest.raises(DatabaseUnavailable):
        database.ping()
    database.upgrade()
    database.ping()
    assert {table.name for table in Row.metadata.sorted_tables} <= tables(database)
    database.close()


def test_upgrade_keeps_rows_when_there_is_nothing_to_do(empty_url: str) -> None:
    database = Database(empty_url)
    database.upgrade()
    project_id = factories.project(database)
    database.upgrade()
    assert factories.project(database) == project_id
    database.close()


def test_upgrade_is_done_once_when_four_processes_start_together(empty_url: str) -> None:
    errors: list[BaseException] = []

    def upgrade() -> None:
        database = Database(empty_url)
        try:
            database.upgrade()
            database.ping()
        except BaseException as error:  # a thread's own exception would only be printed
            errors.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_alembic_command_does_the_same_from_the_checkout(empty_url: str) -> None:
    environment = os.environ | {"FOUNDRY_DATABASE_URL": empty_url}
    for arguments in (["upgrade", "head"], ["check"]):
        subprocess.run([sys.executable, "-m", "alembic", *arguments], cwd=ROOT, env=environment, check=True, timeout=60)
    database = Database(empty_url)
    database.ping()
    database.close()


def test_sqlite_refuses_rows_that_point_nowhere_after_a_schema_change(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    database.upgrade()
    with pytest.raises(Exception, match="FOREIGN KEY"), database.write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO api_keys (id, project_id, name, digest, scopes, created_at) "
            "VALUES ('key_1', 'prj_none', 'x', 'x', '[]', 0)"
        )
    database.close()


def test_failed_migration_leaves_the_schema_as_it_was(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:  # in the way of the last table that the first revision makes
        connection.exec_driver_sql("CREATE TABLE variant_files (id TEXT)")
    engine.dispose()
    database = Database(url)
    with pytest.raises(DatabaseUnavailable, match="already exists"):
        database.upgrade()
    assert tables(database) == {"variant_files"}
    database.close()


def test_keys_from_before_scopes_keep_what_they_could_do_and_the_schema_goes_back(empty_url: str) -> None:
    database = Database(empty_url)
    database.upgrade()
    database.downgrade("0001")
    with database.schema_change() as connection:
        for number, name in enumerate(("default", "other")):
            connection.exec_driver_sql(
                f"INSERT INTO projects (id, name, created_at) VALUES ('prj_{number}', '{name}', 0)"
            )
            connection.exec_driver_sql(
                "INSERT INTO api_keys (id, project_id, name, digest, created_at) "
                f"VALUES ('key_{number}', 'prj_{number}', 'old', 'x', 0)"
            )
    database.upgrade()
    keys = Keys(database, b"secret")
    assert set(keys.get("prj_0", "key_0").scopes) == set(Scope)
    assert set(keys.get("prj_1", "key_1").scopes) == PROJECT_SCOPES
    database.downgrade("0001")
    with database.schema_change() as connection:
        columns = {column["name"] for column in inspect(connection).get_columns("api_keys")}
    assert columns == {"id", "project_id", "name", "digest", "created_at", "revoked_at"}
    database.close()


def test_jobs_from_before_scheduling_keep_their_rows_up_and_down(empty_url: str) -> None:
    """With data: a job that the version before wrote is claimed by this one, and survives the way back."""
    database = Database(empty_url)
    database.upgrade()
    database.downgrade("0002")
    with database.schema_change() as connection:
        _write_as_before(connection)
    database.upgrade()
    settings = Settings(home=Path("/nowhere"), database_url=empty_url)
    claim = Jobs(database, settings).claim("worker")
    assert claim is not None and (claim.job_id, claim.halvings, claim.epoch) == ("job_1", 0, 1)
    database.downgrade("0002")
    with database.schema_change() as connection:
        found = connection.execute(text("SELECT status, epoch, worker FROM jobs")).all()
        columns = {column["name"] for column in inspect(connection).get_columns("jobs")}
    assert [tuple(row) for row in found] == [("running", 1, "worker")]
    assert not columns & {"priority", "halvings", "memory_bytes"}
    database.upgrade()
    database.close()


def test_programs_of_the_version_before_work_with_the_new_schema(empty_url: str) -> None:
    """A rolling deploy: the database is new, and an old API and an old worker still write as they always did."""
    database = Database(empty_url)
    database.upgrade()
    with database.schema_change() as connection:
        _write_as_before(connection)
        claimed = connection.execute(
            text("UPDATE jobs SET status = 'running', epoch = epoch + 1, worker = 'old', lease_until = 9e9 "
                 "WHERE id = 'job_1' AND status = 'queued'")
        )  # fmt: skip
        assert claimed.rowcount == 1
        row = connection.execute(text("SELECT priority, halvings, memory_bytes FROM jobs")).one()
    assert tuple(row) == (0, 0, None)
    database.close()


def test_a_schema_of_a_later_version_is_worked_with_and_an_older_one_is_not(empty_url: str) -> None:
    database = Database(empty_url)
    database.upgrade()
    with database.schema_change() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.ping()
    with database.schema_change() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(DatabaseUnavailable, match="alembic upgrade head"):
        database.ping()
    database.close()


def _write_as_before(connection: Connection) -> None:
    """A project and a queued job, with the columns that revision 0002 knew."""
    spec = factories.spec().model_dump(mode="json")
    spec.pop("priority")
    connection.execute(text("INSERT INTO projects (id, name, quota, created_at) VALUES ('prj_1', 'p', '{}', 0)"))
    connection.execute(
        text(
            "INSERT INTO jobs (id, project_id, name, status, spec, inputs, epoch, fruitless_attempts, last_seq, "
            "created_at) VALUES ('job_1', 'prj_1', '', 'queued', :spec, :inputs, 0, 0, 0, 0)"
        ),
        {"spec": json.dumps(spec), "inputs": json.dumps({"teacher": "/t", "dataset_id": "d", "data_sha256": "0"})},
    )
