"""The same service on PostgreSQL, and through the loss of every connection."""

from pathlib import Path

import pytest

from api.app import create_app
from api.state import State
from foundry.spec.access import Scope
from foundry.spec.resources import Reason
from foundry.store.settings import Settings
from tests.checkpoints import write_checkpoint
from tests.servers import Postgres
from tests.serving import DATA, TARGET

pytestmark = pytest.mark.integration


def test_a_job_is_submitted_watched_and_cancelled_on_postgresql(
    postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "teachers" / "tiny")
    app = create_app(Settings(home=tmp_path, database_url=postgres_url, teacher_roots=(tmp_path / "teachers",)))
    memory: State = app.extensions["foundry"]
    _, key = memory.keys.create(memory.keys.ensure_default_project(), "test")
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"

    dataset = client.post("/v1/datasets?name=a.jsonl", data=DATA).get_json()
    spec = {"teacher": "tiny", "data": dataset["id"], "targets": [TARGET], "name": "null \0 and \U0001f600"}
    headers = {"Idempotency-Key": "once"}
    first, again = (client.post("/v1/customization/jobs", json=spec, headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.get_json()["id"] == again.get_json()["id"]

    postgres.drop_connections()
    url = f"/v1/customization/jobs/{first.get_json()['id']}"
    assert client.post(f"{url}/cancel").get_json()["status"] == "cancelled"
    with client.get(f"{url}/events", headers={"Accept": "text/event-stream"}) as response:
        assert response.get_data().count(b"data: ") == 2
    assert client.get("/v1/customization/jobs/job_%00").status_code == 404
    assert client.get("/readyz").status_code == 200
    memory.database.close()


def test_sums_sweeps_and_deleting_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "teachers" / "tiny")
    app = create_app(Settings(home=tmp_path, database_url=postgres_url, teacher_roots=(tmp_path / "teachers",)))
    memory: State = app.extensions["foundry"]
    project = memory.keys.ensure_default_project()
    _, key = memory.keys.create(project, "test", frozenset(Scope))
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    client.patch(f"/v1/projects/{project}", json={"quota": {"active_jobs": 1, "run_seconds_per_month": 5}})
    dataset = client.post("/v1/datasets?name=a.jsonl", data=DATA).get_json()["id"]
    spec = {"teacher": "tiny", "data": dataset, "targets": [TARGET]}
    job = client.post("/v1/customization/jobs", json=spec).get_json()["id"]
    assert client.post("/v1/customization/jobs", json=spec).status_code == 403
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 409
    claim = memory.jobs.claim("w", job)
    assert claim is not None
    assert client.get("/v1/usage").get_json()["run_seconds"] > 0
    memory.jobs.fail(claim, Reason(code="x", message="y"))
    limits = client.get("/v1/limits").get_json()
    assert (limits["active_jobs"], limits["stored_bytes"]) == (0, len(DATA))
    assert client.get("/metrics").status_code == 200
    assert client.post("/v1/customization/estimates", json=spec).get_json()["run"]["measured"] is None
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert client.delete(f"/v1/customization/jobs/{job}").status_code == 204
    memory.removal.sweep()
    memory.uploads.sweep()
    assert len(client.get("/v1/audit_events").get_json()["data"]) == 5
    memory.database.close()
