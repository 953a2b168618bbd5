"""Every address of the console: without a session, without its scope, with another project's key, and as its owner."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.routing import Rule

from api.auth import scope_of
from api.console.door import OPEN
from foundry.spec.access import PROJECT_SCOPES, Role, Scope
from foundry.spec.job import CustomTarget
from foundry.spec.measurement import Judged, NewMeasurement
from foundry.spec.variant import Metrics
from tests.serving import Serving
from tests.unit.api.browsing import Browser

SCRIPT = '"><script>alert(1)</script>'


@pytest.fixture
def console(app: Flask) -> Flask:
    found: Flask = app.extensions["foundry.console"]
    return found


@pytest.fixture
def everything(serving: Serving) -> dict[str, str]:
    """One object of each kind by the name that it has in addresses; names and texts hold a script."""
    memory, project = serving.memory, serving.project
    job = serving.submit(name=SCRIPT)
    variant = serving.publish(serving.submit(name=SCRIPT), {"weights.gguf": b"0123456789"})
    memory.aliases.put(project, "stable", variant.id)
    endpoint = memory.webhooks.create(project, f"https://example.org/{SCRIPT}", ["job.succeeded"])
    memory.targets.put(project, CustomTarget(name="kiosk", max_params=1000), SCRIPT)
    file = serving.folder / "odd.jsonl"
    file.write_text('{"text": "<script>alert(1)</script>", "id": "<script>alert(1)</script>"}\n' * 3)
    from foundry.intake.documents import summarise

    dataset = memory.datasets.create(project, f"{SCRIPT}.jsonl", file, summarise(file))
    figures = Metrics(model="safetensors", hardware=SCRIPT, runtime=SCRIPT)
    new = NewMeasurement(manifest_sha256="0" * 64, metrics=figures, context_tokens=64, device=SCRIPT)
    memory.measurements.create(project, variant.id, new, Judged("kiosk", False, (SCRIPT,)))
    return {
        "evaluation_id": serving.evaluate(variant, name=SCRIPT).id,
        "job_id": job.id, "dataset_id": dataset.id, "variant_id": variant.id, "alias": "stable",
        "endpoint_id": endpoint.id, "delivery_id": memory.webhooks.test(project, endpoint.id).id, "name": "kiosk",
        "model_id": memory.models.register(project, SCRIPT, "hub", f"org/{SCRIPT}@main", None).id,
        "member_id": memory.members.create(project, SCRIPT, Role.VIEWER).id,
        "key_id": memory.keys.create(project, SCRIPT)[0].id,
    }  # fmt: skip


def _routes(console: Flask) -> Iterator[tuple[str, Rule]]:
    for rule in console.url_map.iter_rules():
        if rule.endpoint not in OPEN:
            yield from ((method, rule) for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}))


def _address(console: Flask, rule: Rule, everything: dict[str, str]) -> str:
    with console.test_request_context():
        return console.url_for(rule.endpoint, **{name: everything[name] for name in rule.arguments})


def _open(reader: Browser, method: str, address: str) -> Any:
    return reader.get(address) if method == "GET" else reader.post(address)


def test_every_address_asks_for_a_session(app: Flask, console: Flask, everything: dict[str, str]) -> None:
    reader = Browser(app)
    reader.get("/sign-in")
    routes = list(_routes(console))
    assert len(routes) >= 54
    for method, rule in routes:
        answer = _open(reader, method, _address(console, rule, everything))
        assert answer.status_code == (303 if method == "GET" else 401), rule
        fragment = reader.client.open(_address(console, rule, everything), method=method, headers={"X-Fragment": "yes"})
        assert fragment.status_code == 401, rule


def test_every_address_asks_for_its_scope(
    app: Flask, console: Flask, serving: Serving, everything: dict[str, str]
) -> None:
    readers: dict[Scope, Browser] = {}
    for method, rule in _routes(console):
        scope = scope_of(console.view_functions[rule.endpoint])
        assert scope is not None, rule
        if scope not in readers:
            key = serving.memory.keys.create(serving.project, "most", set(Scope) - {scope})[1]
            readers[scope] = Browser(app, key)
            readers[scope].get("/jobs" if scope is not Scope.JOBS_READ else "/variants")
        answer = _open(readers[scope], method, _address(console, rule, everything))
        assert (answer.status_code, scope.value in answer.text) == (403, True), rule


def test_every_object_of_another_project_is_missing(
    app: Flask, console: Flask, serving: Serving, everything: dict[str, str]
) -> None:
    other = serving.memory.keys.create_project("other")
    stranger = Browser(app, serving.memory.keys.create(other, "stranger", PROJECT_SCOPES)[1])
    walked = [(method, rule) for method, rule in _routes(console) if rule.arguments]
    assert len(walked) >= 34
    for method, rule in walked:
        answer = _open(stranger, method, _address(console, rule, everything))
        # A form that lacks a field is told of the field first; nothing of the object is said either way.
        expected = {404, 422} if rule.endpoint in ("access.set_role", "variants.put_alias") else {404}
        assert answer.status_code in expected, (rule, answer.text)
        assert "alert(1)" not in answer.text
    for parameter, path, name in [
        ("from", "/jobs/new", "job_id"), ("variant", "/compare", "variant_id"),
        ("model", "/evaluations/new", "variant_id"), ("model", "/evaluations/new", "model_id"),
    ]:  # fmt: skip
        own = everything[name]
        assert stranger.get(f"{path}?{parameter}={own}").status_code == 404
    assert everything["evaluation_id"] not in stranger.get(f"/evaluations?model={everything['variant_id']}").text
    assert stranger.get(f"/compare?job={everything['job_id']}").text.count(everything["variant_id"]) == 0


def test_every_page_shows_what_people_wrote_as_text(
    app: Flask, console: Flask, serving: Serving, everything: dict[str, str]
) -> None:
    reader = Browser(app, serving.memory.keys.create(serving.project, SCRIPT, set(Scope))[1])
    pages = [_address(console, rule, everything) for method, rule in _routes(console) if method == "GET"]
    pages += [
        f"/jobs/new?from={everything['job_id']}",
        f"/audit?object_id={everything['job_id']}",
        "/jobs?status=queued",
        f"/evaluations/new?model={everything['variant_id']}",
        f"/evaluations?status=queued&model={everything['variant_id']}",
    ]
    seen = 0
    for address in pages:
        answer = reader.get(address)
        assert answer.status_code == 200, (address, answer.text)
        assert "<script>alert" not in answer.text, address
        seen += "&lt;script&gt;alert" in answer.text
    assert seen >= 15


def test_every_object_can_be_deleted_by_its_owner(app: Flask, serving: Serving, everything: dict[str, str]) -> None:
    reader = Browser(app, serving.key)
    job, variant = everything["job_id"], everything["variant_id"]
    assert reader.post(f"/jobs/{job}/delete").status_code == 409  # it waits still
    assert reader.post(f"/variants/{variant}/delete").status_code == 409  # a name points to it
    evaluation = everything["evaluation_id"]
    assert reader.post(f"/evaluations/{evaluation}/delete").status_code == 409  # it waits still
    for path in (
        f"/evaluations/{evaluation}/pause", f"/evaluations/{evaluation}/resume", f"/evaluations/{evaluation}/cancel",
        f"/evaluations/{evaluation}/delete",
        f"/jobs/{job}/pause", f"/jobs/{job}/resume", f"/jobs/{job}/cancel", f"/jobs/{job}/delete",
        f"/variants/{variant}/aliases/stable/delete", f"/variants/{variant}/delete",
        f"/datasets/{everything['dataset_id']}/delete", f"/models/{everything['model_id']}/delete",
        f"/targets/{everything['name']}/delete", f"/members/{everything['member_id']}/remove",
        f"/webhooks/{everything['endpoint_id']}/delete", f"/keys/{everything['key_id']}/revoke",
    ):  # fmt: skip
        answer = reader.post(path)
        assert answer.status_code == 303, (path, answer.text)
        assert reader.get(answer.headers["Location"]).status_code == 200
    actions = {event.action for event in serving.memory.projects.audit(serving.project, 100, None, None).data}
    assert {
        "jobs.cancel",
        "evaluations.delete",
        "variants.delete",
        "datasets.delete",
        "access.revoke_key",
        "webhooks.delete",
    } <= actions
