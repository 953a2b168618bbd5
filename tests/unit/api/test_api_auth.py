"""Closed by default: every route, with no key, with a wrong one, and with the key of another project."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from api.auth import OPEN_ENDPOINTS
from tests.serving import DATA, Serving

FILES = {"weights.gguf": b"0123456789"}


def _routes(app: Flask) -> list[tuple[str, Rule]]:
    return [
        (method, rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint not in OPEN_ENDPOINTS
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def _url(app: Flask, rule: Rule, serving: Serving) -> str:
    """The route's address for objects that exist in the project."""
    job = serving.submit()
    variant = serving.publish(serving.submit(), FILES)
    values = {"job_id": job.id, "dataset_id": serving.dataset.id, "variant_id": variant.id, "path": "weights.gguf"}
    assert rule.arguments <= set(values), f"{rule} names an object that this walk does not know: add one to its values"
    with app.test_request_context():
        return app.url_for(rule.endpoint, **{name: values[name] for name in rule.arguments})


def test_every_route_answers_401_when_no_key_is_sent(
    app: Flask, serving: Serving, anonymous: FlaskClient, refused: Any
) -> None:
    routes = _routes(app)
    assert len(routes) >= 16
    for method, rule in routes:
        response = anonymous.open(_url(app, rule, serving), method=method)
        assert refused(response, 401)["code"] == "unauthorized", rule
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_every_route_with_an_object_answers_404_when_the_project_is_another(
    app: Flask, serving: Serving, client: FlaskClient, stranger: FlaskClient, refused: Any
) -> None:
    walked = 0
    for method, rule in _routes(app):
        if rule.arguments:
            url = _url(app, rule, serving)
            assert refused(stranger.open(url, method=method), 404)["code"] == "not_found", rule
            with client.open(url, method=method) as response:
                assert response.status_code in (200, 409), f"{method} {url} must exist for its owner"
            walked += 1
    assert walked >= 10


def test_every_list_is_empty_when_the_project_is_another(
    app: Flask, serving: Serving, client: FlaskClient, stranger: FlaskClient
) -> None:
    serving.publish(serving.submit(), FILES)
    lists = [rule.rule for method, rule in _routes(app) if method == "GET" and not rule.arguments]
    shared = {"/v1/targets", "/v1/formats"}
    assert set(lists) == {"/v1/datasets", "/v1/customization/jobs", "/v1/variants"} | shared
    for path in set(lists) - shared:
        assert client.get(path).get_json()["data"]
        assert stranger.get(path).get_json()["data"] == []


def test_a_stranger_cannot_filter_or_submit_with_objects_when_they_are_anothers(
    serving: Serving, stranger: FlaskClient, refused: Any
) -> None:
    variant = serving.publish(serving.submit(), FILES)
    assert stranger.get(f"/v1/variants?job_id={variant.job_id}").get_json()["data"] == []
    problem = refused(stranger.post("/v1/customization/jobs", json=serving.spec()), 422)
    assert problem["errors"][0]["pointer"] == "/data"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer fdy_wrong",
        "Basic Zm9vOmJhcg==",
        "Bearer \xff",
        "fdy_x",
        f"Bearer fdy_{'0' * 24}_{'0' * 64}",
    ],
)
def test_a_key_is_refused_when_wrong(anonymous: FlaskClient, refused: Any, header: str) -> None:
    refused(anonymous.get("/v1/targets", headers={"Authorization": header}), 401)


def test_a_key_is_refused_when_one_character_differs(serving: Serving, anonymous: FlaskClient, refused: Any) -> None:
    wrong = serving.key[:-1] + ("0" if serving.key[-1] != "0" else "1")
    refused(anonymous.get("/v1/targets", headers={"Authorization": f"Bearer {wrong}"}), 401)
    assert anonymous.get("/v1/targets", headers={"Authorization": f"bearer {serving.key}"}).status_code == 200


def test_a_key_is_refused_when_revoked(serving: Serving, client: FlaskClient, refused: Any) -> None:
    assert client.get("/v1/targets").status_code == 200
    key_id = serving.memory.keys.authenticate(serving.key).id
    serving.memory.keys.revoke(serving.project, key_id)
    refused(client.get("/v1/targets"), 401)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/docs"])
def test_open_routes_answer_when_no_key_is_sent(anonymous: FlaskClient, path: str) -> None:
    assert anonymous.get(path).status_code == 200


def test_an_upload_leaves_nothing_when_the_key_is_wrong(serving: Serving, anonymous: FlaskClient, refused: Any) -> None:
    refused(anonymous.post("/v1/datasets?name=a.jsonl", data=DATA), 401)
    assert not list(serving.settings.artifacts.rglob("*.jsonl"))
