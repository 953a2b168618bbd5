"""Registered teachers, own targets, aliases, lineage: what a job can name, and what points to what came of it."""

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.checkpoints import write_checkpoint
from tests.serving import Serving

JOBS, MODELS = "/v1/customization/jobs", "/v1/models"


def _upload(client: FlaskClient, path: Path) -> str:
    content = path.read_bytes()
    body = {"name": path.name, "purpose": "model_file", "bytes": len(content)}
    upload: str = client.post("/v1/uploads", json=body).get_json()["id"]
    assert client.put(f"/v1/uploads/{upload}/parts/1", data=content).status_code == 200
    assert client.post(f"/v1/uploads/{upload}/complete").get_json()["status"] == "completed"
    return upload


@pytest.fixture
def uploaded(client: FlaskClient, tmp_path: Path) -> dict[str, str]:
    """File name to upload id of a checkpoint that the service's own folders do not hold."""
    return {path.name: _upload(client, path) for path in write_checkpoint(tmp_path / "elsewhere").iterdir()}


def test_an_uploaded_model_becomes_a_jobs_teacher_and_goes_when_deleted(
    serving: Serving, client: FlaskClient, refused: Any, uploaded: dict[str, str]
) -> None:
    body = {"name": "mine", "source": {"kind": "upload", "files": uploaded}}
    response = client.post(MODELS, json=body, headers={"Idempotency-Key": "k"})
    model = response.get_json()
    assert response.status_code == 201, model
    assert client.post(MODELS, json=body, headers={"Idempotency-Key": "k"}).get_json() == model
    assert (model["family"], model["kind"]) == ("llama", "upload") and model["parameters"] > 20_000
    job = client.post(JOBS, json=serving.spec(teacher=model["id"])).get_json()
    assert (job["status"], job["spec"]["teacher"]) == ("queued", model["id"])
    inputs = serving.memory.jobs.inputs(serving.project, job["id"])
    assert (inputs.model_id, inputs.teacher_parameters) == (model["id"], model["parameters"])
    folder = Path(inputs.teacher)
    assert {path.name for path in folder.iterdir()} == set(uploaded) and not any(
        p.is_symlink() for p in folder.iterdir()
    )
    assert refused(client.delete(f"{MODELS}/{model['id']}"), 409)["code"] == "in_use"
    client.post(f"{JOBS}/{job['id']}/cancel")
    assert client.delete(f"{MODELS}/{model['id']}").status_code == 204
    assert not folder.exists()
    assert refused(client.post(JOBS, json=serving.spec(teacher=model["id"])), 422)["code"] == "teacher_not_found"


def test_a_model_leaves_nothing_when_its_files_are_no_model(
    serving: Serving, client: FlaskClient, refused: Any, uploaded: dict[str, str]
) -> None:
    del uploaded["config.json"]
    problem = refused(client.post(MODELS, json={"name": "m", "source": {"kind": "upload", "files": uploaded}}), 422)
    assert "config.json" in problem["detail"]
    assert client.get(MODELS).get_json()["data"] == []
    assert not list((serving.settings.artifacts / "models").iterdir())


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/x.json", "model.bin", "a/b.json", "modeling.py", ".json", "x.pkl"]
)
def test_a_models_file_is_refused_by_its_name(client: FlaskClient, refused: Any, name: str) -> None:
    body = {"name": "m", "source": {"kind": "upload", "files": {name: "up_x"}}}
    assert refused(client.post(MODELS, json=body), 422)["errors"][0]["code"] == "string_pattern_mismatch"


@pytest.mark.parametrize(
    ("source", "pointer"),
    [
        ({"kind": "hub", "repository": "org/name", "revision": "main"}, "/source/hub/revision"),
        ({"kind": "hub", "repository": "../x", "revision": "0" * 40}, "/source/hub/repository"),
        ({"kind": "folder", "path": "/etc"}, "/teacher"),
        ({"kind": "upload", "files": {"config.json": "up_none"}}, None),
        ({"kind": "else"}, "/source"),
    ],
    ids=["branch", "climbing", "outside", "no-upload", "kind"],
)
def test_a_model_is_refused_with_the_field_that_is_wrong(
    client: FlaskClient, refused: Any, source: dict[str, Any], pointer: str | None
) -> None:
    problem = refused(client.post(MODELS, json={"name": "m", "source": source}), 422 if pointer else 404)
    assert [error["pointer"] for error in problem["errors"]] == ([pointer] if pointer else [])


def test_a_folder_and_a_pinned_hub_model_are_registered(serving: Serving, client: FlaskClient) -> None:
    folder = client.post(
        MODELS, json={"name": "f", "source": {"kind": "folder", "path": serving.teacher.name}}
    ).get_json()
    assert folder["source"] == str(serving.teacher) and folder["bytes"] is None
    hub = {"kind": "hub", "repository": "org/name", "revision": "0" * 40}
    model = client.post(MODELS, json={"name": "h", "source": hub}).get_json()
    job = client.post(JOBS, json=serving.spec(teacher=model["id"])).get_json()
    assert serving.memory.jobs.inputs(serving.project, job["id"]).teacher == f"org/name@{'0' * 40}"
    assert [one["id"] for one in client.get(MODELS).get_json()["data"]] == [model["id"], folder["id"]]


def test_a_target_of_the_projects_own_is_written_into_the_job_that_names_it(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    target = {"description": "in the hall", "max_params": "20e3"}
    made = client.put("/v1/targets/hall", json=target).get_json()
    assert (made["custom"], made["max_params"]) == (True, 20_000)
    assert [one["name"] for one in client.get("/v1/targets?limit=1").get_json()["data"]] == ["hall"]
    job = client.post(JOBS, json=serving.spec(targets=["hall", "laptop"])).get_json()
    client.put("/v1/targets/hall", json={"max_params": 15_000})
    assert client.get(f"{JOBS}/{job['id']}").get_json()["spec"]["targets"][0]["max_params"] == 20_000
    assert (
        client.post("/v1/customization/estimates", json=serving.spec(targets=["hall"])).get_json()["targets"][0][
            "parameters"
        ]
        <= 15_000
    )
    assert client.delete("/v1/targets/hall").status_code == 204
    assert refused(client.post(JOBS, json=serving.spec(targets=["hall"])), 422)["code"] == "unknown_target"
    assert refused(client.put("/v1/targets/laptop", json=target), 409)["code"] == "name_taken"
    both = refused(client.put("/v1/targets/both", json={"max_params": 1, "max_bytes": 1}), 422)
    assert "exactly one" in both["detail"]


def test_an_alias_points_to_a_variant_and_can_be_moved(serving: Serving, client: FlaskClient, refused: Any) -> None:
    first, second = (serving.publish(serving.submit(), {"a.gguf": bytes([n])}) for n in range(2))
    assert client.put("/v1/aliases/stable", json={"variant_id": first.id}).get_json()["variant_id"] == first.id
    assert refused(client.delete(f"/v1/variants/{first.id}"), 409)["code"] == "in_use"
    client.put("/v1/aliases/stable", json={"variant_id": second.id})
    client.put("/v1/aliases/beta", json={"variant_id": second.id})
    assert client.get("/v1/aliases/stable").get_json()["variant_id"] == second.id
    page = client.get("/v1/aliases?limit=1").get_json()
    assert [page["data"][0]["name"], page["next"]] == ["beta", "beta"]
    assert [one["name"] for one in client.get("/v1/aliases?after=beta").get_json()["data"]] == ["stable"]
    lineage = client.get(f"/v1/variants/{second.id}/lineage").get_json()
    assert lineage["aliases"] == ["beta", "stable"]
    assert (lineage["job_id"], lineage["dataset_id"]) == (second.job_id, serving.dataset.id)
    assert client.delete(f"/v1/variants/{first.id}").status_code == 204
    assert client.delete(f"{JOBS}/{first.job_id}").status_code == 204
    assert refused(client.delete(f"{JOBS}/{second.job_id}"), 409)["code"] == "in_use"
    refused(client.put("/v1/aliases/Not-An-Alias", json={"variant_id": second.id}), 422)
    refused(client.put("/v1/aliases/none", json={"variant_id": "var_none"}), 404)


def test_a_failed_job_is_retried_and_any_job_cloned_with_changes(
    serving: Serving, client: FlaskClient, refused: Any
) -> None:
    job = client.post(JOBS, json=serving.spec(seed=3)).get_json()
    url = f"{JOBS}/{job['id']}"
    assert refused(client.post(f"{url}/retry"), 409)["code"] == "illegal_transition"
    client.post(f"{url}/cancel")
    retried = client.post(f"{url}/retry", headers={"Idempotency-Key": "r"}).get_json()
    assert (retried["parent_id"], retried["spec"], retried["status"]) == (job["id"], job["spec"], "queued")
    assert client.post(f"{url}/retry", headers={"Idempotency-Key": "r"}).get_json()["id"] == retried["id"]
    changes = {"seed": None, "distill": {"tokens": 5000}, "formats": ["safetensors"]}
    cloned = client.post(f"{JOBS}/{retried['id']}/clone", json={"changes": changes}).get_json()
    spec = cloned["spec"]
    assert (spec["seed"], spec["distill"]["tokens"], spec["formats"]) == (0, 5000, ["safetensors"])
    assert spec["distill"]["learning_rate"] == job["spec"]["distill"]["learning_rate"]
    variant = serving.publish(serving.memory.jobs.get(serving.project, cloned["id"]), {"a.gguf": b"a"})
    lineage = client.get(f"/v1/variants/{variant.id}/lineage").get_json()
    assert lineage["parent_job_ids"] == [retried["id"], job["id"]]
    wrong = refused(client.post(f"{url}/clone", json={"changes": {"distill": {"tokens": -1}}}), 422)
    assert wrong["errors"][0]["pointer"] == "/changes/distill/tokens"


def test_a_repeated_submit_gets_its_job_whatever_became_of_teacher_and_data(
    serving: Serving, client: FlaskClient
) -> None:
    headers, spec = {"Idempotency-Key": "once"}, serving.spec()
    first = client.post(JOBS, json=spec, headers=headers).get_json()
    client.post(f"{JOBS}/{first['id']}/cancel")
    client.delete(f"/v1/datasets/{serving.dataset.id}")
    (serving.teacher / "model.safetensors").unlink()
    again = client.post(JOBS, json=spec, headers=headers)
    assert (again.status_code, again.get_json()["id"]) == (201, first["id"])
