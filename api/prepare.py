"""Before the first start, and before every new version: `python -m api.prepare`.

Brings the database to the newest schema and, in an installation that has no key yet, makes one that administers it:
FOUNDRY_HOME/key, for its owner's eyes alone. Done twice it does nothing, and several may do it at once.
"""

import os
import sys

from sqlalchemy import func, select

from foundry.errors import FoundryError
from foundry.spec.access import Scope
from foundry.store.database import Database
from foundry.store.keys import Keys, read_or_make_secret
from foundry.store.settings import Settings
from foundry.store.tables import ApiKeyRow


def main() -> int:
    """The process; 1 with the reason when it could not be done."""
    try:
        print(prepare(Settings.from_env()))
    except FoundryError as error:
        print(f"the installation cannot be prepared: {error.message}", file=sys.stderr)
        return 1
    return 0


def prepare(settings: Settings) -> str:
    """Do it, and say what was done; raise `DatabaseUnavailable`."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.database_url)
    try:
        database.upgrade()
        keys = Keys(database, read_or_make_secret(settings.home / "secret"))
        with database.read() as session:
            count = session.scalar(select(func.count()).select_from(ApiKeyRow))
        if count:
            return f"the database is up to date; {count} keys are there"
        _, plaintext = keys.create(keys.ensure_default_project(), "first key", frozenset(Scope))
        path = settings.home / "key"
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(plaintext + "\n")
        return f"the database is up to date; the first key is in {path}"
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main())
