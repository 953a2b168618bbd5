"""Every answer that is not a success has one shape, whatever went wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from api.auth import needs
from api.state import State
from foundry.store.settings import Settings
from tests.serving import Serving


def test_an_unknown_path_answers_404_and_says_where_to_look(client: FlaskClient, refused: Any) -> None:
    assert "/openapi.json" in refused(client.get("/v1/nothing"), 404)["detail"]


def test_a_wrong_method_answers_405_with_the_right_ones(client: FlaskClient, refused: Any) -> None:
    response = client.delete("/v1/customization/jobs")
    assert "not DELETE" in refused(response, 405)["detail"]
    assert {"GET", "POST"} <= set(response.headers["Allow"].replace(" ", "").split(","))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"a": 1}}', b"\xff", b'{"seed": NaN}', b'{"seed": Infinity}', b"[" * 200_000],
    ids=["empty", "cut", "too much", "not UTF-8", "NaN", "Infinity", "deep"],
)
def test_a_body_answers_400_when_it_is_not_json(client: FlaskClient, refused: Any, body: bytes) -> None:
    response = client.post("/v1/customization/jobs", data=body, content_type="application/json")
    assert refused(response, 400)["code"] == "bad_request"


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1"])
def test_a_body_answers_422_when_it_is_not_an_object(client: FlaskClient, refused: Any, body: bytes) -> None:
    refused(client.post("/v1/customization/jobs", data=body, content_type="application/json"), 422)


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_answers_415_when_it_is_not_called_json(
    client: FlaskClient, refused: Any, media_type: str | None
) -> None:
    response = client.post("/v1/customization/jobs", data=b"{}", content_type=media_type)
    assert "application/json" in refused(response, 415)["detail"]


def test_a_json_body_answers_413_when_too_large(client: FlaskClient, refused: Any) -> None:
    body = json.dumps({"name": "x" * 2**20})
    assert (
        "1,048,576"
        in refused(client.post("/v1/customization/jobs", data=body, content_type="application/json"), 413)["detail"]
    )


@pytest.mark.parametrize(
    ("query", "pointer", "detail"),
    [
        ("colour=red", "/query/colour", "unknown field; the fields are limit, after, status"),
        ("limit=0", "/query/limit", "greater than or equal to 1"),
        ("limit=101", "/query/limit", "less than or equal to 100"),
        ("limit=many", "/query/limit", "valid integer"),
        ("limit=1&limit=2", "/query/limit", "more than once"),
        ("status=done", "/query/status", "'queued'"),
        ("after=", "/query/after", "at least 1 character"),
    ],
)
def test_a_query_parameter_is_refused_with_its_name(
    client: FlaskClient, refused: Any, query: str, pointer: str, detail: str
) -> None:
    (error,) = refused(client.get(f"/v1/customization/jobs?{query}"), 422)["errors"]
    assert error["pointer"] == pointer
    assert detail in error["detail"]


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/v1/datasets/ds_x", "/v1/variants/var_x/files/a/b"])
def test_a_query_parameter_is_refused_when_the_view_takes_none(client: FlaskClient, refused: Any, path: str) -> None:
    (error,) = refused(client.get(f"{path}?verbose=1"), 422)["errors"]
    assert error["pointer"] == "/query/verbose"
    assert "takes none" in error["detail"]


def test_a_request_id_is_echoed_when_plain_and_replaced_when_not(client: FlaskClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc-123"}).headers["X-Request-Id"] == "abc-123"
    for given in ("", "a b", "x" * 65, "<script>"):
        made = client.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"]
        assert made != given
        assert len(made) == 32


def test_an_unexpected_exception_answers_500_without_its_text(
    app: Flask, serving: Serving, anonymous: FlaskClient, refused: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    @app.get("/v1/broken")
    @needs(None)
    def broken() -> str:
        raise RuntimeError("secret: /etc/foundry/password")

    headers = {"Authorization": f"Bearer {serving.key}", "X-Request-Id": "find-me"}
    problem = refused(anonymous.get("/v1/broken", headers=headers), 500)
    assert problem["code"] == "internal_error"
    assert problem["retryable"] is False
    assert "secret" not in json.dumps(problem)
    assert "find-me" in problem["detail"]
    logged = capsys.readouterr().out
    assert "secret: /etc/foundry/password" in logged
    assert "find-me" in logged


def _without_database(folder: Path) -> Flask:
    # Nothing listens on the discard port: the driver is refused at once, as while a server restarts.
    return create_app(Settings(home=folder, database_url="postgresql://foundry:hidden@127.0.0.1:9/foundry"))


def test_a_request_answers_503_and_when_to_come_back_when_the_database_is_away(tmp_path: Path, refused: Any) -> None:
    app = _without_database(tmp_path)
    response = app.test_client().get("/v1/targets", headers={"Authorization": f"Bearer fdy_{'0' * 24}_{'0' * 64}"})
    problem = refused(response, 503)
    assert problem["code"] == "database_unavailable"
    assert problem["retryable"] is True
    assert int(response.headers["Retry-After"]) > 0
    assert "hidden" not in json.dumps(problem)


def test_readiness_answers_503_and_health_200_when_the_database_is_away(tmp_path: Path) -> None:
    client = _without_database(tmp_path).test_client()
    assert client.get("/healthz").status_code == 200
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.get_json()["checks"]["database"].startswith("does not answer")
    assert response.get_json()["checks"]["disk"] == "ok"


def test_readiness_answers_503_when_the_schema_is_missing(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path))
    response = app.test_client().get("/readyz")
    assert response.status_code == 503
    memory: State = app.extensions["foundry"]
    memory.database.upgrade()
    assert app.test_client().get("/readyz").get_json() == {
        "status": "ready",
        "checks": {"database": "ok", "disk": "ok"},
    }
    memory.database.close()


def test_readiness_names_the_disk_when_the_artifacts_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    app = create_app(Settings(home=tmp_path / "home", artifacts=tmp_path / "file"))
    assert "cannot be used" in app.test_client().get("/readyz").get_json()["checks"]["disk"]


def test_answers_are_not_cached_or_sniffed(client: FlaskClient) -> None:
    response = client.get("/v1/targets")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
