import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.app import create_app
from api.state import State
from tests.serving import Serving, problem_of


@pytest.fixture
def serving(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Serving]:
    made = Serving(tmp_path)
    made.settings.home.mkdir()
    shutil.copy(migrated_sqlite, made.settings.home / "foundry.db")
    yield made
    made.memory.database.close()


@pytest.fixture
def app(serving: Serving) -> Iterator[Flask]:
    assert serving.memory  # the schema stands before the app looks at it
    app = create_app(serving.settings)
    yield app
    memory: State = app.extensions["foundry"]
    memory.database.close()


@pytest.fixture
def client(app: Flask, serving: Serving) -> FlaskClient:
    """Sends the project's key with every request."""
    return _client(app, serving.key)


@pytest.fixture
def stranger(app: Flask, serving: Serving) -> FlaskClient:
    """Has a good key, of another project."""
    other = serving.memory.keys.create_project("other")
    return _client(app, serving.memory.keys.create(other, "stranger")[1])


@pytest.fixture
def anonymous(app: Flask) -> FlaskClient:
    return app.test_client()


def _client(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


Refused = Callable[[TestResponse, int], dict[str, Any]]


@pytest.fixture
def refused() -> Refused:
    """The problem document of an answer with this status; fails when the answer is anything else."""

    def check(response: TestResponse, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.get_data(as_text=True)
        assert response.content_type == "application/problem+json"
        problem = problem_of(response.get_data(), status)
        assert problem["request_id"] == response.headers["X-Request-Id"]
        assert problem["instance"] == response.request.path
        return problem

    return check
