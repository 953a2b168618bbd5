"""Projects, members, keys with scopes, quotas, rates, audit, usage, metrics."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from api.auth import scope_of
from api.examples import EXAMPLES
from foundry.spec.access import Scope
from foundry.spec.lifecycle import EventType, RunEvent
from tests.serving import DATA, Serving

KEYS, JOBS = "/v1/api_keys", "/v1/customization/jobs"


def _with(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


@pytest.fixture
def operator(app: Flask, serving: Serving) -> FlaskClient:
    return _with(app, serving.memory.keys.create(serving.project, "operator", set(Scope))[1])


def test_a_key_does_what_its_scopes_say_and_hands_out_no_more(app: Flask, client: FlaskClient, refused: Any) -> None:
    made = client.post(KEYS, json={"name": "reader", "scopes": ["jobs:read", "project:admin"]}).get_json()
    reader = _with(app, made["key"])
    assert reader.get("/v1/whoami").get_json()["scopes"] == ["jobs:read", "project:admin"]
    assert reader.get(JOBS).status_code == 200
    assert "jobs:write" in refused(reader.post(JOBS, json={}), 403)["detail"]
    assert "datasets:read" in refused(reader.post(KEYS, json={"name": "x", "scopes": ["datasets:read"]}), 403)["detail"]
    assert refused(reader.post(f"{KEYS}/{client.get('/v1/whoami').get_json()['id']}/rotate", json={}), 403)
    listed = client.get(KEYS).get_json()["data"]
    assert made["id"] in {key["id"] for key in listed} and not any("key" in key for key in listed)
    assert client.delete(f"{KEYS}/{made['id']}").status_code == 204
    refused(reader.get(JOBS), 401)


def test_a_rotated_key_works_until_its_grace_is_over(app: Flask, client: FlaskClient, refused: Any) -> None:
    old = client.post(KEYS, json={"name": "build", "scopes": ["jobs:read"]}).get_json()
    url, once = f"{KEYS}/{old['id']}/rotate", {"Idempotency-Key": "k"}
    new = client.post(url, json={"grace_s": 1000}, headers=once).get_json()
    assert new["scopes"] == ["jobs:read"] and new["key"] != old["key"]
    for key in (old, new):
        assert _with(app, key["key"]).get(JOBS).status_code == 200
    again = client.post(
        f"{KEYS}/{old['id']}/rotate", json={"grace_s": 1000}, headers={"Idempotency-Key": "k"}
    ).get_json()
    assert (again["id"], again["key"]) == (new["id"], None)
    client.post(f"{KEYS}/{new['id']}/rotate", json={"grace_s": 0})
    refused(_with(app, new["key"]).get(JOBS), 401)
    assert refused(client.post(f"{KEYS}/{new['id']}/rotate", json={}), 409)["code"] == "state_conflict"


def test_a_members_keys_reach_as_far_as_the_role(app: Flask, client: FlaskClient, refused: Any) -> None:
    ada = client.post("/v1/members", json={"name": "ada", "role": "viewer"}).get_json()
    assert refused(client.post("/v1/members", json={"name": "ada", "role": "viewer"}), 409)["code"] == "name_taken"
    key = client.post(KEYS, json={"name": "hers", "member_id": ada["id"]}).get_json()
    hers = _with(app, key["key"])
    assert "jobs:write" not in key["scopes"] and "jobs:read" in key["scopes"]
    refused(hers.post(f"{JOBS}/job_x/cancel"), 403)
    client.patch(f"/v1/members/{ada['id']}", json={"role": "editor"})
    refused(hers.post(f"{JOBS}/job_x/cancel"), 404)
    refused(hers.post(KEYS, json={"name": "more"}), 403)
    assert client.delete(f"/v1/members/{ada['id']}").status_code == 204
    refused(hers.get(JOBS), 401)
    refused(client.post(KEYS, json={"name": "x", "member_id": ada["id"]}), 404)


def test_an_operator_makes_projects_that_see_nothing_of_each_other(
    app: Flask, operator: FlaskClient, client: FlaskClient, refused: Any
) -> None:
    made = operator.post("/v1/projects", json={"name": "speech"}).get_json()
    speech = _with(app, made["admin_key"]["key"])
    assert [one["name"] for one in speech.get("/v1/projects").get_json()["data"]] == ["speech"]
    assert len(operator.get("/v1/projects").get_json()["data"]) == 2
    refused(speech.get(f"/v1/projects/{client.get('/v1/whoami').get_json()['project_id']}"), 404)
    refused(speech.post("/v1/projects", json={"name": "own"}), 403)
    assert refused(operator.post("/v1/projects", json={"name": "speech"}), 409)["code"] == "name_taken"
    assert "installation:admin" not in made["admin_key"]["scopes"]


def test_a_quota_refuses_what_goes_beyond_it(
    serving: Serving, operator: FlaskClient, client: FlaskClient, refused: Any
) -> None:
    stored = client.get("/v1/limits").get_json()["stored_bytes"] + serving.dataset.bytes
    quota = {"active_jobs": 1, "stored_bytes": stored + len(DATA)}
    operator.patch(f"/v1/projects/{serving.project}", json={"quota": quota})
    job = client.post(JOBS, json=serving.spec()).get_json()
    assert refused(client.post(JOBS, json=serving.spec()), 403)["code"] == "quota_exceeded"
    client.post(f"{JOBS}/{job['id']}/cancel")
    assert client.post(JOBS, json=serving.spec()).status_code == 201
    assert client.post("/v1/datasets?name=a.jsonl", data=DATA).status_code == 201
    assert refused(client.post("/v1/datasets?name=a.jsonl", data=DATA), 403)["code"] == "quota_exceeded"
    refused(client.post("/v1/uploads", json={"name": "a.jsonl", "bytes": 1}), 403)
    limits = client.get("/v1/limits").get_json()
    assert (limits["active_jobs"], limits["quota"]["active_jobs"]) == (1, 1)
    usage = client.get("/v1/usage").get_json()
    assert (usage["jobs_submitted"], usage["jobs_by_status"]) == (2, {"cancelled": 1, "queued": 1})
    before = client.get("/v1/usage?since=2001-01-01T00:00:00Z&until=2002-01-01T00:00:00Z").get_json()
    assert before["jobs_submitted"] == 0
    refused(client.get("/v1/usage?since=2002-01-01T00:00:00Z&until=2001-01-01T00:00:00Z"), 422)


def test_a_change_of_one_limit_leaves_the_others(serving: Serving, operator: FlaskClient) -> None:
    def change(**quota: int | None) -> dict[str, Any]:
        changed = operator.patch(f"/v1/projects/{serving.project}", json={"quota": quota}).get_json()["quota"]
        return {name: most for name, most in changed.items() if most is not None}

    assert change(active_jobs=3) == {"active_jobs": 3}
    assert change(stored_bytes=9) == {"active_jobs": 3, "stored_bytes": 9}
    assert change(active_jobs=None) == {"stored_bytes": 9}


def test_a_key_that_asks_too_often_is_told_when_to_go_on(serving: Serving, refused: Any) -> None:
    assert serving.key
    app = create_app(serving.settings.model_copy(update={"requests_per_minute": 3}))
    client, other = (_with(app, serving.memory.keys.create(serving.project, name)[1]) for name in "ab")
    for left in (2, 1, 0):
        assert client.get("/v1/whoami").headers["RateLimit-Remaining"] == str(left)
    response = client.get("/v1/whoami")
    problem = refused(response, 429)
    assert (problem["code"], problem["retryable"]) == ("rate_limited", True)
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert other.get("/v1/whoami").status_code == 200
    assert client.get("/healthz").status_code == 200
    app.extensions["foundry"].database.close()


def test_every_write_leaves_one_audit_event_and_a_refused_one_none(
    app: Flask, serving: Serving, operator: FlaskClient, refused: Any
) -> None:
    """Walks every operation that writes with a body that is accepted; what is new must be added here."""
    project = serving.project
    dataset = serving.dataset
    variant = serving.publish(serving.submit(), {"a.gguf": b"a"})

    def events() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = operator.get("/v1/audit_events?limit=100").get_json()["data"]
        return found

    def does(method: str, path: str, action: str, **more: Any) -> dict[str, Any]:
        before = len(events())
        response = operator.open(f"/v1{path}", method=method, **more)
        assert response.status_code in (200, 201, 204), response.get_data()
        after = events()
        assert (len(after) - before, after[0]["action"]) == (1, action)
        made: dict[str, Any] = response.get_json(silent=True) or {}
        assert after[0]["object_id"], action
        assert after[0]["request_id"] == response.headers["X-Request-Id"]
        done.add(action)
        return made

    done: set[str] = set()
    key = does("POST", "/api_keys", "access.create_key", json={"name": "k"})["id"]
    does("POST", f"/api_keys/{key}/rotate", "access.rotate_key", json={})
    does("DELETE", f"/api_keys/{key}", "access.revoke_key")
    member = does("POST", "/members", "access.create_member", json=EXAMPLES["MemberBody"])["id"]
    does("PATCH", f"/members/{member}", "access.set_role", json={"role": "admin"})
    does("DELETE", f"/members/{member}", "access.remove_member")
    does("POST", "/projects", "access.create_project", json=EXAMPLES["ProjectBody"])
    does("PATCH", f"/projects/{project}", "access.set_quota", json={"quota": {}})
    does(
        "DELETE", f"/datasets/{does('POST', '/datasets?name=a', 'datasets.create', data=DATA)['id']}", "datasets.delete"
    )
    body = {"name": "a", "bytes": len(DATA)}
    first, second = (does("POST", "/uploads", "uploads.create", json=body)["id"] for _ in range(2))
    does("POST", f"/uploads/{second}/cancel", "uploads.cancel")
    does("PUT", f"/uploads/{first}/parts/1", "uploads.put_part", data=DATA)
    does("POST", f"/uploads/{first}/complete", "uploads.complete")
    model = does("POST", "/models", "models.create", json=EXAMPLES["ModelBody"])["id"]
    does("DELETE", f"/models/{model}", "models.delete")
    does("PUT", "/targets/hall", "targets.put_target", json={"max_params": 5})
    does("DELETE", "/targets/hall", "targets.delete_target")
    job = does("POST", "/customization/jobs", "jobs.create", json=serving.spec(data=dataset.id))["id"]
    for verb in ("pause", "resume", "cancel"):
        does("POST", f"/customization/jobs/{job}/{verb}", f"jobs.{verb}")
    does("POST", f"/customization/jobs/{job}/retry", "jobs.retry")
    does("POST", f"/customization/jobs/{job}/clone", "jobs.clone", json={})
    does("DELETE", f"/customization/jobs/{job}", "jobs.delete")
    asked = {"model": serving.publish(serving.submit(), {"m": b"m"}, {"m": "safetensors"}).id, "suite": "quick"}
    evaluation = does("POST", "/evaluations", "evaluations.create", json=asked)["id"]
    for verb in ("pause", "resume", "cancel"):
        does("POST", f"/evaluations/{evaluation}/{verb}", f"evaluations.{verb}")
    does("DELETE", f"/evaluations/{evaluation}", "evaluations.delete")
    measured = EXAMPLES["NewMeasurement"] | {"manifest_sha256": variant.manifest_sha256}
    does("POST", f"/variants/{variant.id}/measurements", "measurements.create", json=measured)
    does("PUT", "/aliases/a", "variants.put_alias", json={"variant_id": variant.id})
    does("DELETE", "/aliases/a", "variants.delete_alias")
    does("DELETE", f"/variants/{variant.id}", "variants.delete")
    hook = does("POST", "/webhook_endpoints", "webhooks.create", json=EXAMPLES["EndpointBody"])["id"]
    url = f"/webhook_endpoints/{hook}"
    does("PATCH", url, "webhooks.change", json={"enabled": False})
    does("POST", f"{url}/rotate", "webhooks.rotate")
    delivery = does("POST", f"{url}/test", "webhooks.test")["id"]
    does("POST", f"{url}/deliveries/{delivery}/redeliver", "webhooks.redeliver")
    does("DELETE", url, "webhooks.delete")

    writing = {
        rule.endpoint
        for rule in app.url_map.iter_rules()
        if (rule.methods or set()) & {"POST", "PUT", "PATCH", "DELETE"}
        and scope_of(app.view_functions[rule.endpoint]) is not None
    }
    assert done == writing - {"estimates.estimate"}
    before = len(events())
    refused(operator.post("/v1/customization/jobs", json=serving.spec(data="ds_none")), 422)
    assert len(events()) == before
    assert {event["object_id"] for event in operator.get(f"/v1/audit_events?object_id={job}").get_json()["data"]} == {
        job
    }


def test_metrics_tell_prometheus_of_requests_and_jobs(
    serving: Serving, operator: FlaskClient, client: FlaskClient
) -> None:
    serving.submit()
    client.get("/v1/targets")
    answer = operator.get("/metrics")
    assert answer.content_type.startswith("text/plain")
    text = answer.get_data(as_text=True)
    assert 'foundry_requests_total{method="GET",operation="targets.list_targets",status="200"} 1.0' in text
    assert 'foundry_jobs{status="queued"} 1.0' in text
    assert "foundry_request_seconds_bucket" in text


def test_a_jobs_history_is_read_as_log_figures_and_checkpoints(serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    claim = serving.memory.jobs.claim("w", job.id)
    assert claim is not None

    def said(type: EventType, message: str = "", level: Any = "info", **data: Any) -> RunEvent:
        return RunEvent(type=type, message=message, level=level, data=data)

    serving.memory.jobs.append(claim, [
        said(EventType.LOG, "quiet", "debug"),
        said(EventType.PROGRESS, stage="distill", step=1, steps=9, loss=2.5, note="x", ok=True),
        said(EventType.CHECKPOINT, "kept", stage="distill", step=1),
        said(EventType.WARNING, "careful", "warning"),
        said(EventType.METRICS, held_out_loss=2.0),
    ])  # fmt: skip
    url = f"{JOBS}/{job.id}"
    assert [line["message"] for line in client.get(f"{url}/logs?level=warning").get_json()["data"]] == ["careful"]
    words = [line["message"] for line in client.get(f"{url}/logs?level=debug").get_json()["data"]]
    assert words[-3:] == ["quiet", "kept", "careful"]
    page = client.get(f"{url}/metrics?limit=1").get_json()
    (first,) = page["data"]
    assert (first["stage"], first["step"], first["steps"], first["values"]) == ("distill", 1, 9, {"loss": 2.5})
    (second,) = client.get(f"{url}/metrics?after={page['next']}").get_json()["data"]
    assert second["values"] == {"held_out_loss": 2.0}
    (checkpoint,) = client.get(f"{url}/checkpoints").get_json()["data"]
    assert (checkpoint["stage"], checkpoint["step"], checkpoint["attempt"]) == ("distill", 1, 1)


def test_an_estimate_tells_what_the_run_takes_and_its_time_from_what_others_took(
    serving: Serving, client: FlaskClient
) -> None:
    spec = serving.spec(distill={"tokens": 1000})
    run = client.post("/v1/customization/estimates", json=spec).get_json()["run"]
    assert (run["duration_s"], run["measured"], run["disk_suffices"]) == (None, None, True)
    found = client.post("/v1/customization/estimates", json=spec).get_json()
    students = found["targets"][0]["parameters"]
    assert run["memory_bytes"] == 2 * found["teacher_parameters"] + 16 * students
    assert run["training_operations"] == (2 * found["teacher_parameters"] + 6 * students) * 1000
    job = client.post(JOBS, json=spec).get_json()
    serving.publish(serving.memory.jobs.get(serving.project, job["id"]), {"a.gguf": b"a"})
    with serving.memory.database.write() as session:
        session.connection().exec_driver_sql("UPDATE attempts SET ended_at = started_at + 10")
    app = create_app(serving.settings.model_copy(update={"cost_per_hour": 36.0}))
    priced = _with(app, serving.key).post("/v1/customization/estimates", json={**spec, "distill": {"tokens": 3000}})
    later = priced.get_json()["run"]
    assert later["measured"]["jobs"] == 1
    assert later["duration_s"] == pytest.approx(30)
    assert (later["cost"], later["currency"]) == (pytest.approx(0.3), "USD")
    app.extensions["foundry"].database.close()
