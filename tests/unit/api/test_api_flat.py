"""Lists are flat in the size of their tables: every query behind one finds its rows by an index and sorts nothing."""

import re
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

from foundry.spec.access import Scope
from tests.serving import Serving


def test_every_list_finds_its_rows_by_an_index(app: Flask, serving: Serving) -> None:
    variant = serving.publish(serving.submit(), {"a.gguf": b"a"})
    endpoint = serving.memory.webhooks.create(serving.project, "https://example.org/", ["job.failed"])
    client: FlaskClient = app.test_client()
    key = serving.memory.keys.create(serving.project, "all", set(Scope))[1]
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    own = {"job_id": variant.job_id, "endpoint_id": endpoint.id}
    lists = {
        "/v1/customization/jobs?status=failed",
        "/v1/evaluations?status=failed",
        f"/v1/variants?job_id={variant.job_id}",
    }
    lists |= {
        f"/v1/variants?job_id={variant.job_id}",
        "/v1/uploads?status=open",
        f"/v1/uploads?sha256={'0' * 64}",
        "/v1/audit_events",
    }
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            inputs = getattr(app.view_functions[rule.endpoint], "_spec", {}).get("args") or []
            is_list = any({"limit", "after"} <= set(kind.model_fields) for kind, _ in inputs)
            if is_list and "GET" in (rule.methods or ()) and rule.arguments <= set(own):
                lists.add(app.url_for(rule.endpoint, **{name: own[name] for name in rule.arguments}))
    assert len(lists) >= 18
    engine: Any = app.extensions["foundry"].database._reader
    plans: list[tuple[str, str]] = []

    def explain(connection: Any, _: Any, statement: str, parameters: Any, *__: Any) -> None:
        if statement.startswith("SELECT") and "FROM " in statement:
            plan = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend((statement, row[3]) for row in plan)

    event.listen(engine, "before_cursor_execute", explain)
    for path in sorted(lists):
        with client.get(path) as response:
            assert response.status_code == 200, path
    event.remove(engine, "before_cursor_execute", explain)
    assert len(plans) > len(lists)
    empty = ("SCAN CONSTANT ROW", "SCAN (subquery")  # an IN that has nothing to look for
    slow = [plan for plan in plans if plan[1].startswith("SCAN") or ("TEMP B-TREE" in plan[1] and "LIMIT " in plan[0])]
    assert [
        plan for plan in slow if "FROM projects" not in plan[0] and not plan[1].startswith(empty)
    ] == []  # of tenants there are never many


def test_a_submit_sends_eight_statements(serving: Serving, client: FlaskClient) -> None:
    """Most of what a submit takes is what its statements take."""
    client.post("/v1/customization/jobs", json=serving.spec())  # the first use of a key is noted
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(re.findall(r"(?:FROM|INTO) (\w+)", statement)[0])

    engine: Any = client.application.extensions["foundry"].database._reader
    event.listen(engine, "before_cursor_execute", note)
    answer = client.post("/v1/customization/jobs", json=serving.spec(), headers={"Idempotency-Key": "one"})
    event.remove(engine, "before_cursor_execute", note)
    assert answer.status_code == 201
    assert sent == [
        "api_keys", "datasets", "idempotency_keys", "projects", "jobs", "events", "webhook_endpoints", "audit_events"
    ]  # fmt: skip
