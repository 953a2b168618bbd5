"""Closed by default: every route, with no key, with a wrong one, and with the key of another project."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from api.auth import OPEN_ENDPOINTS, scope_of
from api.examples import EXAMPLES
from foundry.spec.access import PROJECT_SCOPES, Role, Scope
from foundry.spec.job import CustomTarget
from tests.serving import DATA, Serving

FILES = {"weights.gguf": b"0123456789"}


def _routes(app: Flask) -> list[tuple[str, Rule]]:
    return [
        (method, rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint not in OPEN_ENDPOINTS
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


@pytest.fixture
def everything(serving: Serving) -> dict[str, Any]:
    """One object of each kind in the project, by the name that it has in addresses."""
    memory, project = serving.memory, serving.project
    job = serving.submit()
    variant = serving.publish(serving.submit(), FILES)
    evaluation = serving.evaluate(variant)
    serving.keep_report(job)
    memory.aliases.put(project, "stable", variant.id)
    endpoint = memory.webhooks.create(project, "https://example.org/hook", ["job.succeeded"])
    memory.targets.put(project, CustomTarget(name="kiosk", max_params=1000), "")
    return {
        "job_id": job.id, "evaluation_id": evaluation.id, "form": "json", "dataset_id": serving.dataset.id,
        "variant_id": variant.id, "path": "weights.gguf",
        "alias": "stable", "endpoint_id": endpoint.id, "delivery_id": memory.webhooks.test(project, endpoint.id).id,
        "name": "kiosk", "upload_id": memory.uploads.create(project, "a.jsonl", "dataset", 5).id, "number": 1,
        "model_id": memory.models.register(project, "m", "hub", "org/name@main", None).id, "project": project,
        "member_id": memory.members.create(project, "ada", Role.VIEWER).id,
        "key_id": memory.keys.authenticate(serving.key).id,
    }  # fmt: skip


def _url(app: Flask, rule: Rule, everything: dict[str, Any]) -> str:
    """The route's address for objects that exist in the project."""
    assert rule.arguments <= set(everything), f"{rule} names an object that this walk does not know: add one"
    with app.test_request_context():
        return app.url_for(rule.endpoint, **{name: everything[name] for name in rule.arguments})


def _body(app: Flask, rule: Rule) -> dict[str, Any]:
    """What to send, so that the answer is about the object and not about the body."""
    body = getattr(app.view_functions[rule.endpoint], "_spec", {}).get("body")
    return {"json": EXAMPLES[body.__name__]} if body else {}


def _client_with(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


def test_every_route_answers_401_when_no_key_is_sent(
    app: Flask, everything: dict[str, Any], anonymous: FlaskClient, refused: Any
) -> None:
    routes = _routes(app)
    assert len(routes) >= 70
    for method, rule in routes:
        response = anonymous.open(_url(app, rule, everything), method=method, **_body(app, rule))
        assert refused(response, 401)["code"] == "unauthorized", rule
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_every_route_answers_403_when_the_key_has_every_scope_but_its_own(
    app: Flask, serving: Serving, everything: dict[str, Any], refused: Any
) -> None:
    clients: dict[Scope, FlaskClient] = {}
    for method, rule in _routes(app):
        scope = scope_of(app.view_functions[rule.endpoint])
        if scope is None:
            continue
        if scope not in clients:
            clients[scope] = _client_with(
                app, serving.memory.keys.create(serving.project, "most", set(Scope) - {scope})[1]
            )
        response = clients[scope].open(_url(app, rule, everything), method=method, **_body(app, rule))
        problem = refused(response, 403)
        assert (problem["code"], scope.value in problem["detail"]) == ("forbidden", True), rule


def test_every_route_with_an_object_answers_404_when_the_project_is_another(
    app: Flask, serving: Serving, everything: dict[str, Any], refused: Any
) -> None:
    """A key with every scope, the installation's alone left out: that one sees all projects."""
    other = serving.memory.keys.create_project("other")
    stranger = _client_with(app, serving.memory.keys.create(other, "stranger", PROJECT_SCOPES)[1])
    walked = [
        (method, rule)
        for method, rule in _routes(app)
        if rule.arguments and scope_of(app.view_functions[rule.endpoint]) is not Scope.INSTALLATION
    ]
    assert len(walked) >= 45
    for method, rule in walked:
        if (method, rule.endpoint) in {("PUT", "targets.put_target")}:
            continue  # a name of the caller's own project: there is nothing of another's to see
        response = stranger.open(_url(app, rule, everything), method=method, **_body(app, rule))
        assert refused(response, 404)["code"] == "not_found", rule


def test_every_route_with_an_object_exists_for_its_owner(
    app: Flask, serving: Serving, everything: dict[str, Any]
) -> None:
    client = _client_with(app, serving.memory.keys.create(serving.project, "all", set(Scope))[1])
    order = {"GET": 0, "PUT": 1, "PATCH": 1, "POST": 2, "DELETE": 3}
    for method, rule in sorted(_routes(app), key=lambda route: order[route[0]]):
        if rule.arguments:
            with client.open(_url(app, rule, everything), method=method, **_body(app, rule)) as response:
                if response.status_code == 404:  # an example names objects that are not there
                    assert response.get_json()["errors"], f"{method} {rule} must exist for its owner"
                assert response.status_code in (200, 201, 204, 400, 404, 409, 422), (method, rule, response.get_data())


def test_every_list_is_empty_when_the_project_is_another(
    app: Flask, serving: Serving, everything: dict[str, Any], client: FlaskClient, stranger: FlaskClient
) -> None:
    lists = [rule.rule for method, rule in _routes(app) if method == "GET" and not rule.arguments]
    no_lists = {"/metrics", "/v1/whoami", "/v1/usage", "/v1/limits"}
    shared = {"/v1/formats", "/v1/families"}
    serving.memory.members.create(serving.project, "ada@example.org", Role.ADMIN)
    client.post("/v1/webhook_endpoints", json=EXAMPLES["EndpointBody"])  # writes an audit event
    for path in set(lists) - no_lists - shared:
        mine = {str(item) for item in client.get(path).get_json()["data"]}
        theirs = {str(item) for item in stranger.get(path).get_json()["data"]}
        own = {"/v1/targets": 1, "/v1/api_keys": 0, "/v1/projects": 0}  # what a new project has, or all see
        assert mine - theirs, path
        if path not in own:
            assert not theirs, path
        elif path != "/v1/targets":
            assert not mine & theirs, path


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
