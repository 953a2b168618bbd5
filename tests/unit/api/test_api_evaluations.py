"""/v1/evaluations and a job's report, over HTTP."""

from hashlib import sha256
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from foundry.store.project_tables import GarbageRow
from foundry.store.records import EvaluationInputs
from tests.serving import Serving

URL = "/v1/evaluations"
FORMS = {"safetensors/model.safetensors": "safetensors", "safetensors/tokenizer.json": "safetensors"}


@pytest.fixture
def variant_id(serving: Serving) -> str:
    files = {**FORMS, "kiosk-q4_k_m.gguf": "gguf:q4_k_m"}
    return serving.publish(serving.submit(), {path: path.encode() for path in files}, forms=files).id


def test_an_evaluation_of_a_variant_is_queued_once_for_one_key(
    serving: Serving, client: FlaskClient, variant_id: str
) -> None:
    body = {"model": variant_id, "format": "gguf:q4_k_m", "suite": "minitron", "limit": 10}
    first, again = (client.post(URL, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    made = first.get_json()
    assert made["id"] == again.get_json()["id"] and made["status"] == "queued"
    claim = serving.memory.jobs.claim("w", made["id"])
    assert claim is not None and isinstance(claim.inputs, EvaluationInputs)
    # The GGUF, and what its tokenizer needs; not the weights that nobody opens.
    assert {file.path for file in claim.inputs.model.files} == {
        "kiosk-q4_k_m.gguf", "manifest.json", "safetensors/tokenizer.json",
    }  # fmt: skip
    assert [one["id"] for one in client.get(f"{URL}?status=running").get_json()["data"]] == [made["id"]]
    assert client.get(f"{URL}?status=queued").get_json()["data"] == []


def test_evaluations_are_listed_by_the_model_that_they_measure(
    serving: Serving, client: FlaskClient, variant_id: str
) -> None:
    another = serving.publish(serving.submit(), {path: b"x" for path in FORMS}, forms=FORMS)
    named = f'"model":"{another.id}" %'  # a name that looks like the field of a spec
    first = client.post(URL, json={"model": variant_id, "suite": "quick", "name": named}).get_json()["id"]
    second = client.post(URL, json={"model": another.id, "data": serving.dataset.id, "teacher": variant_id}).get_json()[
        "id"
    ]

    def listed(model: str) -> list[str]:
        return [one["id"] for one in client.get(URL, query_string={"model": model}).get_json()["data"]]

    assert listed(variant_id) == [first] and listed(another.id) == [second]
    assert listed("var_%") == listed('"') == []


@pytest.mark.parametrize(
    ("change", "pointer", "says"),
    [
        ({"tasks": ["winogrand"]}, "/tasks", "winogrande"),
        ({"suite": "minitro"}, "/suite", "minitron"),
        ({"suite": None}, "/suite", "minitron or quick"),
        ({"format": "onnx:int4"}, "/format", "gguf:q4_k_m"),
        ({"format": "gguf:f16"}, "/format", "has no gguf:f16"),
        ({"model": "var_none"}, "/model", "var_none"),
        ({"model": "mdl_none"}, "/model", "mdl_none"),
        ({"model": "/etc"}, "/model", "POST /v1/models"),
        ({"data": "ds_none"}, "/data", "POST /v1/datasets"),
        ({"teacher": "mdl_none"}, "/teacher", "data"),
        ({"tasks": "mmlu"}, "/tasks", "should be a list"),
        ({"tasks": ["mmlu"] * 65}, "/tasks", "List should have at most 64 items"),
        ({"more": 1}, "/more", "unknown field"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_with_the_field_and_the_way_out(
    client: FlaskClient, refused: Any, variant_id: str, change: dict[str, Any], pointer: str, says: str
) -> None:
    body = {"model": variant_id, "suite": "quick", **change}
    problem = refused(client.post(URL, json={k: v for k, v in body.items() if v is not None}), 422)
    assert says in problem["detail"] + str(problem["errors"])
    assert pointer in [error["pointer"] for error in problem["errors"]]


def test_an_evaluation_is_cancelled_followed_and_deleted(client: FlaskClient, refused: Any, variant_id: str) -> None:
    one = f"{URL}/{client.post(URL, json={'model': variant_id, 'suite': 'quick'}).get_json()['id']}"
    assert refused(client.delete(one), 409)["code"] == "in_use"
    assert client.post(f"{one}/pause").get_json()["status"] == "paused"
    assert client.post(f"{one}/resume").get_json()["status"] == "queued"
    assert client.post(f"{one}/cancel").get_json()["is_terminal"]
    events = client.get(f"{one}/events?wait=5").get_json()["data"]
    assert [event["type"] for event in events] == ["job.submitted", "job.paused", "job.resumed", "job.cancelled"]
    stream = client.get(f"{one}/events", headers={"Accept": "text/event-stream"}).get_data(as_text=True)
    assert stream.count("data: ") == 4
    assert client.get(one.replace("evaluations", "customization/jobs")).status_code == 404
    assert client.delete(one).status_code == 204
    refused(client.get(one), 404)


def test_a_report_comes_in_the_form_that_is_asked_for_and_runs_nothing(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    job = serving.submit()
    url = f"/v1/customization/jobs/{job.id}/report"
    assert "no run of it has ended" in refused(client.get(url), 404)["detail"]
    serving.keep_report(job, b'{"status": "failed"}')
    for accept, kind in (
        ("*/*", "application/json"), ("text/html,*/*;q=0.1", "text/html; charset=utf-8"),
        ("text/markdown", "text/markdown; charset=utf-8"),
    ):  # fmt: skip
        with client.get(url, headers={"Accept": accept}) as response:
            assert (response.status_code, response.content_type) == (200, kind)
            assert response.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        with client.get(url, headers={"If-None-Match": response.headers["ETag"]}) as unchanged:
            assert unchanged.status_code == 304
    with client.get(f"{url}.json") as response:
        assert response.get_json() == {"status": "failed"}
    refused(client.get(f"{url}.pdf"), 404)


def test_a_deleted_job_lets_go_of_its_report(serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    serving.keep_report(job)
    client.post(f"/v1/customization/jobs/{job.id}/cancel")
    assert client.delete(f"/v1/customization/jobs/{job.id}").status_code == 204
    assert client.get(f"/v1/customization/jobs/{job.id}/report").status_code == 404
    with serving.memory.database.read() as session:
        assert session.scalar(select(GarbageRow.sha256)) == sha256(b"{}").hexdigest()
