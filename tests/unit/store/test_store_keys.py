"""API keys: shown once, stored as an HMAC, checked without a hint to what was wrong."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from foundry.errors import NotFound, Unauthorized
from foundry.store.database import Database
from foundry.store.keys import Keys, read_or_make_secret
from foundry.store.tables import ApiKeyRow
from tests import factories


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database, b"the installation's secret")


def test_key_opens_its_project(keys: Keys, project_id: str) -> None:
    key, plaintext = keys.create(project_id, "laptop")
    assert keys.authenticate(plaintext) == key
    assert (key.project_id, key.name) == (project_id, "laptop")
    assert plaintext.startswith(f"fdy_{key.id.removeprefix('key_')}_")


def test_plaintext_is_not_stored(keys: Keys, database: Database, project_id: str) -> None:
    _, plaintext = keys.create(project_id, "laptop")
    with database.read() as session:
        row = session.scalars(select(ApiKeyRow)).one()
        stored = " ".join(str(getattr(row, column.name)) for column in ApiKeyRow.__table__.columns)
    assert plaintext.split("_")[2] not in stored


def test_wrong_keys_are_refused_alike(keys: Keys, database: Database, project_id: str) -> None:
    _, good = keys.create(project_id, "laptop")
    last = "0" if good[-1] != "0" else "1"
    _, of_other_installation = Keys(database, b"another secret").create(project_id, "x")
    wrong = ["", "fdy_", good[:-1], good[:-1] + last, good + "0", f" {good}", f"{good}\n", good.upper(), "é" * 90]
    wrong += [f"fdy_{'0' * 24}_{'0' * 64}", f"fdy_{'0' * 24}_\0{'0' * 63}", of_other_installation]
    messages = set()
    for plaintext in wrong:
        with pytest.raises(Unauthorized) as raised:
            keys.authenticate(plaintext)
        messages.add(raised.value.message)
    assert len(messages) == 1 and "Authorization: Bearer" in messages.pop()


def test_revoked_key_is_refused_from_then_on(keys: Keys, project_id: str) -> None:
    key, plaintext = keys.create(project_id, "laptop")
    keys.revoke(project_id, key.id)
    keys.revoke(project_id, key.id)
    with pytest.raises(Unauthorized):
        keys.authenticate(plaintext)


def test_key_of_another_project_cannot_be_revoked(keys: Keys, database: Database, project_id: str) -> None:
    key, plaintext = keys.create(project_id, "laptop")
    with pytest.raises(NotFound, match=key.id):
        keys.revoke(factories.project(database, "other"), key.id)
    assert keys.authenticate(plaintext) == key


def test_key_cannot_be_made_for_a_project_that_is_not_there(keys: Keys) -> None:
    with pytest.raises(NotFound, match="prj_none"):
        keys.create("prj_none", "laptop")


def test_default_project_is_made_once_when_many_ask(keys: Keys) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(keys.ensure_default_project())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / "secret"
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(read_or_make_secret(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {path.read_bytes()} and len(path.read_bytes()) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]
