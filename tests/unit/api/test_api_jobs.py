"""Submitting, looking and steering; and that a refused job leaves neither row nor file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from api.app import create_app
from api.state import State
from foundry.store.settings import Settings
from foundry.store.tables import Row
from tests.checkpoints import LLAMA, sizes_of, write_checkpoint, write_config, write_tensors
from tests.serving import TARGET, Serving

JOBS = "/v1/customization/jobs"
ROOT = Path(__file__).parents[3]


def _everything(serving: Serving) -> dict[str, int]:
    """How many rows every table has, and how many files the home folder has besides the database's own."""
    with serving.memory.database.read() as session:
        counts = {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Row.metadata.sorted_tables
        }
    files = [p for p in serving.settings.home.rglob("*") if p.is_file() and not p.name.startswith("foundry.db")]
    return {**counts, "files": len(files)}


def test_a_job_is_queued_with_its_first_event_when_the_spec_can_work(serving: Serving, client: FlaskClient) -> None:
    response = client.post(JOBS, json=serving.spec(name="first"))
    assert response.status_code == 201
    job = response.get_json()
    assert (job["status"], job["name"], job["attempt"], job["is_terminal"]) == ("queued", "first", 0, False)
    assert job["spec"]["distill"]["tokens"] == 20_000_000  # defaults are resolved in the answer
    assert client.get(f"{JOBS}/{job['id']}").get_json() == job | {"queue_position": 1}
    (event,) = client.get(f"{JOBS}/{job['id']}/events").get_json()["data"]
    assert (event["seq"], event["type"]) == (1, "job.submitted")
    claim = serving.memory.jobs.claim("w", job["id"])
    assert claim is not None
    assert claim.inputs.teacher == str(serving.teacher)
    assert claim.inputs.data_sha256 == serving.dataset.sha256


def test_a_reader_who_has_the_answer_is_told_so_until_it_changes(serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    for path in (f"{JOBS}/{job.id}", JOBS):
        first = client.get(path)
        known = {"If-None-Match": first.headers["ETag"]}
        again = client.get(path, headers=known)
        assert (again.status_code, again.data) == (304, b"")
        assert "Content-Length" not in again.headers
        assert client.get(path, headers={"If-Match": '"other"'}).status_code == 200
        serving.say(job, "one more attempt")
        assert client.get(path, headers=known).status_code == 200
    assert "ETag" not in client.get(f"{JOBS}/job_none").headers


def _pickled(serving: Serving) -> str:
    (write_config(serving.folder / "teachers" / "pickled") / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return "pickled"


def _damaged(serving: Serving) -> str:
    folder = write_checkpoint(serving.folder / "teachers" / "damaged")
    write_tensors(folder / "model.safetensors", {**sizes_of(), "model.norm.weight": (31,)})
    return "damaged"


def _without_tokenizer(serving: Serving) -> str:
    (write_checkpoint(serving.folder / "teachers" / "mute") / "tokenizer.json").unlink()
    return "mute"


def _foreign_family(serving: Serving) -> str:
    write_config(serving.folder / "teachers" / "bloom", {**LLAMA, "model_type": "bloom"})
    return "bloom"


def _link_out(serving: Serving) -> str:
    outside = write_checkpoint(serving.folder / "outside")
    serving.teacher.parent.joinpath("link").symlink_to(outside)
    return "link"


def _outside(serving: Serving) -> str:
    return str(write_checkpoint(serving.folder / "outside"))


def _climbing(serving: Serving) -> str:
    write_checkpoint(serving.folder / "outside")
    return "../outside"


@pytest.mark.parametrize(
    ("teacher", "code", "message"),
    [
        (lambda _: "missing", "teacher_not_found", "there is no folder 'missing' below"),
        (lambda _: "mis\0sing", "teacher_not_found", "there is no folder"),
        (lambda _: "x" * 1000, "teacher_not_found", "there is no folder"),
        (_outside, "teacher_not_found", "there is no folder"),
        (_climbing, "teacher_not_found", "there is no folder"),
        (_link_out, "teacher_not_found", "there is no folder"),
        (lambda _: "/etc", "teacher_not_found", "there is no folder"),
        (lambda _: "~nobody/x", "teacher_not_found", "there is no folder"),
        (_pickled, "unsafe_checkpoint", "pytorch_model.bin: pickled weights"),
        (_damaged, "damaged_checkpoint", "'model.norm.weight' has the size (31,)"),
        (_without_tokenizer, "damaged_checkpoint", "tokenizer.json"),
        (_foreign_family, "unsupported_family", "'bloom'"),
    ],
)
def test_a_job_leaves_nothing_when_its_teacher_cannot_be_used(
    serving: Serving, client: FlaskClient, refused: Any, teacher: Any, code: str, message: str
) -> None:
    spec = serving.spec(teacher=teacher(serving))
    before = _everything(serving)
    response = client.post(JOBS, json=spec, headers={"Idempotency-Key": "k"})
    problem = refused(response, 422)
    assert problem["code"] == code
    assert message in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/teacher"
    assert _everything(serving) == before


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"data": "ds_missing"}, "/data", "no dataset 'ds_missing' in this project; upload the file first"),
        ({"data": "./domain.jsonl"}, "/data", "upload the file first"),
        ({"targets": ["smartfone"]}, "/targets/0", "the targets are smartphone-entry, "),
        ({"targets": [TARGET, "smartfone"]}, "/targets/1", "unknown target 'smartfone'"),
        ({"targets": []}, "/targets", "at least 1 item"),
        ({"targets": [{"name": "kiosk", "max_bytes": 1, "colour": "red"}]}, "/targets/0/colour", "unknown field"),
        ({"formats": ["onnx"]}, "/formats", "unknown format 'onnx'; the formats are safetensors"),
        ({"colour": "red"}, "/colour", "unknown field; the fields are teacher, data, targets"),
        ({"distill": {"token": 5}}, "/distill/token", "unknown field"),
        ({"seed": -1}, "/seed", "greater than or equal to 0"),
        ({"teacher": None}, "/teacher", "valid string"),
        ({"teacher": "\ud800"}, "/teacher", "unicode"),
        ({"lora": {"learning_rate": "1e999"}}, "/lora/learning_rate", "finite"),
    ],
)
def test_a_job_leaves_nothing_when_a_field_is_wrong(
    serving: Serving, client: FlaskClient, refused: Any, changes: dict[str, Any], pointer: str, message: str
) -> None:
    spec = serving.spec(**changes)
    before = _everything(serving)
    problem = refused(client.post(JOBS, json=spec, headers={"Idempotency-Key": "k"}), 422)
    assert message in problem["detail"]
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert _everything(serving) == before


def test_a_job_leaves_nothing_and_names_the_smallest_size_when_a_budget_is_unreachable(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    spec = serving.spec(targets=[TARGET, {"name": "watch", "max_bytes": 1000}])
    before = _everything(serving)
    problem = refused(client.post(JOBS, json=spec), 422)
    assert problem["code"] == "budget_unreachable"
    assert problem["errors"][0]["pointer"] == "/targets/1"
    assert f"allow at least {problem['smallest_bytes']:,} bytes" in problem["detail"]
    assert _everything(serving) == before
    mended = serving.spec(targets=[TARGET, {"name": "watch", "max_bytes": problem["smallest_bytes"]}])
    assert client.post(JOBS, json=mended).status_code == 201


def _app_of(serving: Serving, **changes: Any) -> tuple[Flask, dict[str, str]]:
    app = create_app(Settings(home=serving.settings.home, **changes))
    return app, {"Authorization": f"Bearer {serving.key}"}


def _close(app: Flask) -> None:
    memory: State = app.extensions["foundry"]
    memory.database.close()


def test_a_teacher_on_the_hub_is_taken_unopened_when_the_operator_allows_it(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    assert client.post(JOBS, json=serving.spec(teacher="org/name@main")).status_code == 201
    assert (
        refused(client.post(JOBS, json=serving.spec(teacher="org/name", targets=["nope"])), 422)["code"]
        == "unknown_target"
    )
    app, headers = _app_of(serving, hub_allowed=False)
    problem = refused(app.test_client().post(JOBS, json=serving.spec(teacher="org/name"), headers=headers), 422)
    assert "takes no teachers from the model hub" in problem["detail"]
    _close(app)


def test_a_teacher_in_a_folder_is_refused_when_the_operator_allows_none(serving: Serving, refused: Any) -> None:
    app, headers = _app_of(serving)
    problem = refused(app.test_client().post(JOBS, json=serving.spec(), headers=headers), 422)
    assert "FOUNDRY_TEACHER_ROOTS" in problem["detail"]
    _close(app)


def test_a_relative_teacher_is_found_in_whichever_root_has_it(serving: Serving) -> None:
    second = serving.folder / "more"
    write_checkpoint(second / "other")
    app, headers = _app_of(serving, teacher_roots=(serving.folder / "teachers", second))
    for teacher in ("tiny", "./other", str(second / "other"), f"{second}/./other/"):
        response = app.test_client().post(JOBS, json=serving.spec(teacher=teacher), headers=headers)
        assert response.status_code == 201, response.get_json()
    _close(app)


def test_a_submit_makes_one_job_when_sent_again_with_its_key(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post(JOBS, json=serving.spec(), headers=headers)
    reordered = dict(reversed(serving.spec().items()))
    assert client.post(JOBS, json=reordered, headers=headers).get_json() == first.get_json()
    problem = refused(client.post(JOBS, json=serving.spec(seed=1), headers=headers), 422)
    assert problem["code"] == "idempotency_conflict"
    assert len(client.get(JOBS).get_json()["data"]) == 1


def test_a_job_is_steered_through_its_statuses(serving: Serving, client: FlaskClient, refused: Any) -> None:
    url = f"{JOBS}/{serving.submit().id}"
    assert client.post(f"{url}/pause").get_json()["status"] == "paused"
    assert client.post(f"{url}/resume").get_json()["status"] == "queued"
    assert serving.memory.jobs.claim("w") is not None
    assert client.post(f"{url}/pause").get_json()["status"] == "pausing"
    assert client.post(f"{url}/cancel").get_json()["status"] == "cancelling"
    problem = refused(client.post(f"{url}/resume"), 409)
    assert problem["code"] == "illegal_transition"
    assert "cancelling" in problem["detail"]


def test_a_list_of_jobs_keeps_one_status_when_asked(serving: Serving, client: FlaskClient) -> None:
    kept, cancelled = serving.submit(), serving.submit()
    client.post(f"{JOBS}/{cancelled.id}/cancel")
    assert [job["id"] for job in client.get(JOBS).get_json()["data"]] == [cancelled.id, kept.id]
    assert [job["id"] for job in client.get(f"{JOBS}?status=queued").get_json()["data"]] == [kept.id]


def test_attempts_are_listed_in_order_and_by_pages(serving: Serving, client: FlaskClient, refused: Any) -> None:
    job = serving.submit()
    for _ in range(3):
        serving.say(job, "hello")
    url = f"{JOBS}/{job.id}/attempts"
    first = client.get(f"{url}?limit=2").get_json()
    assert [item["attempt"] for item in first["data"]] == [1, 2]
    assert first["data"][0]["outcome"] == "released"
    rest = client.get(f"{url}?after={first['next']}").get_json()
    assert [item["attempt"] for item in rest["data"]] == [3]
    assert rest["has_more"] is False
    assert refused(client.get(f"{url}?after=x"), 422)["errors"][0]["pointer"] == "/query/after"


def test_an_estimate_gives_a_shape_within_each_budget_and_stores_nothing(serving: Serving, client: FlaskClient) -> None:
    spec = serving.spec(targets=[TARGET, "smartphone"], formats=["safetensors", "gguf:f16"])
    before = _everything(serving)
    found = client.post("/v1/customization/estimates", json=spec).get_json()
    kiosk, phone = found["targets"]
    assert kiosk["parameters"] <= TARGET["max_params"] < found["teacher_parameters"]
    assert 0 < kiosk["budget_ratio"] <= 1
    assert {form["format"]: form["bytes"] for form in kiosk["formats"]}["safetensors"] == 2 * kiosk["parameters"]
    assert phone["cuts_nothing"] is True
    assert phone["shape"] == found["teacher_shape"]
    assert phone["budget"]["context_tokens"] == LLAMA["max_position_embeddings"]
    assert phone["decode_tokens_per_s_bound"] > 0
    assert _everything(serving) == before


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"targets": [{"name": "watch", "max_params": 10}]}, "budget_unreachable"),
        ({"targets": ["nope"]}, "unknown_target"),
        ({"teacher": "missing"}, "teacher_not_found"),
        ({"teacher": "org/name"}, "teacher_not_found"),
    ],
)
def test_an_estimate_is_refused_as_the_job_would_be(
    serving: Serving, client: FlaskClient, refused: Any, changes: dict[str, Any], code: str
) -> None:
    assert refused(client.post("/v1/customization/estimates", json=serving.spec(**changes)), 422)["code"] == code


def test_targets_and_formats_are_listed_by_pages(client: FlaskClient) -> None:
    first = client.get("/v1/targets?limit=1").get_json()
    rest = client.get(f"/v1/targets?after={first['next']}").get_json()
    names = [target["name"] for target in first["data"] + rest["data"]]
    assert len(names) == len(set(names)) and {"laptop", "smartphone", "workstation"} < set(names)
    assert first["data"][0]["max_bytes"] < first["data"][0]["memory_bytes"]
    formats = [form["name"] for form in client.get("/v1/formats").get_json()["data"]]
    assert formats[0] == "safetensors"
    assert "gguf:q4_k_m" in formats


def test_the_api_accepts_a_job_without_loading_torch_when_fresh(serving: Serving) -> None:
    spec = json.dumps(serving.spec())
    code = f"""
import sys
from api.wsgi import app
response = app.test_client().post({JOBS!r}, data={spec!r}, content_type="application/json",
                                  headers={{"Authorization": "Bearer {serving.key}"}})
assert response.status_code == 201, response.get_data()
assert not {{"torch", "transformers", "numpy", "celery"}} & set(sys.modules), "a heavy library was loaded"
"""
    environment = {
        **os.environ, "FOUNDRY_HOME": str(serving.settings.home), "FOUNDRY_TEACHER_ROOTS": str(serving.teacher.parent)
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_FIELDS = st.sampled_from(
    ["correct", "prune", "distill", "lora", "formats", "seed", "name", "targets", "axes", "tokens", "rank", "max_bytes",
     "max_params", "context_tokens", "format", "learning_rate", "candidates"]
)  # fmt: skip
_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["1e999", 10**400, "20e6", "smartphone", "gguf:f16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS | st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(_FIELDS | st.text(max_size=4), _ANYTHING, max_size=4))
def test_a_submit_is_taken_or_refused_but_never_fails_when_fuzzed(
    serving: Serving, client: FlaskClient, changes: dict[str, Any]
) -> None:
    body = json.dumps(serving.spec() | changes)
    response = client.post(JOBS, data=body, content_type="application/json", headers={"Accept": "application/json"})
    assert response.status_code in (201, 400, 422), (body, response.get_data())
    if response.status_code == 201:
        found = client.get(f"{JOBS}/{response.get_json()['id']}").get_json()
        assert found | {"queue_position": None} == response.get_json()
    elif response.status_code == 422:
        assert response.get_json(force=True)["errors"], body
