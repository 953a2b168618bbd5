"""Runs the migrations, for the `alembic` command (FOUNDRY_DATABASE_URL says where) and for `Database.upgrade()`.

A new revision: alembic revision --autogenerate -m "why"
"""

from typing import Any, Literal

from alembic import context
from sqlalchemy.engine import Connection

from foundry.store.database import Database
from foundry.store.rows import Json, Words
from foundry.store.settings import Settings
from foundry.store.tables import Row


def plain_type(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Revisions stay readable by themselves: they name the column's type, not the code that fills it."""
    return "sa.Text()" if kind == "type" and isinstance(item, Words | Json) else False


def run(connection: Connection) -> None:
    """All revisions in one transaction: a migration that fails leaves the schema as it was, on SQLite too."""
    context.configure(
        connection=connection, target_metadata=Row.metadata, render_as_batch=True, render_item=plain_type,
        transactional_ddl=True,
    )  # fmt: skip
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("migrations need a database to look at: run them without --sql")
given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    database = Database(Settings.from_env().database_url)
    with database.schema_change() as connection:
        run(connection)
    database.close()
