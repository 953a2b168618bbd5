"""What a variant did on devices: kept with the variant, judged by a budget, refused where it is of other files."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from foundry.spec.resources import Variant
from tests.serving import Serving, problem_of

METRICS = {"model": "safetensors", "file_bytes": 40_000, "hardware": "Cortex-A76, 4 threads", "runtime": "x 1"}


@pytest.fixture
def variant(serving: Serving) -> Variant:
    return serving.publish(serving.submit(formats=["safetensors"]), {"README.md": b"# x"})


def body(variant: Variant, **changes: Any) -> dict[str, Any]:
    return {"manifest_sha256": variant.manifest_sha256, "metrics": METRICS, "context_tokens": 4096, **changes}


def path(variant: Variant) -> str:
    return f"/v1/variants/{variant.id}/measurements"


def test_a_measurement_is_kept_with_its_hardware_and_listed_newest_first(client: FlaskClient, variant: Variant) -> None:
    first = client.post(path(variant), json=body(variant, device="kiosk in the hall"))
    assert first.status_code == 201 and first.get_json()["device"] == "kiosk in the hall"
    second = client.post(path(variant), json=body(variant)).get_json()
    listed = client.get(path(variant)).get_json()["data"]
    assert [one["id"] for one in listed] == [second["id"], first.get_json()["id"]]
    assert listed[0]["metrics"]["hardware"] == METRICS["hardware"] and listed[0]["fits_budget"] is True
    assert listed[0]["key_id"] == client.get("/v1/whoami").get_json()["id"]
    assert client.get(f"/v1/variants/{variant.id}").get_json()["fits_budget"] is True


def test_one_key_makes_one_measurement(client: FlaskClient, variant: Variant) -> None:
    made = [client.post(path(variant), json=body(variant), headers={"Idempotency-Key": "k"}).get_json()["id"]] * 1
    made.append(client.post(path(variant), json=body(variant), headers={"Idempotency-Key": "k"}).get_json()["id"])
    assert len(set(made)) == 1 and len(client.get(path(variant)).get_json()["data"]) == 1


def test_another_target_is_judged_by_its_own_budget(client: FlaskClient, variant: Variant) -> None:
    small = {"max_bytes": 30_000, "format": "safetensors", "context_tokens": 64}
    assert client.put("/v1/targets/watch", json=small).status_code == 200
    judged = client.post(path(variant), json=body(variant, target="watch")).get_json()
    assert judged["target"] == "watch" and judged["fits_budget"] is False
    assert "more than 30,000" in judged["over_budget"][0]
    problem = problem_of(client.post(path(variant), json=body(variant, target="moon")).data, 422)
    assert "unknown target 'moon'" in problem["detail"] and "PUT /v1/targets" in problem["detail"]
    assert [error["pointer"] for error in problem["errors"]] == ["/target"]


def test_another_target_is_judged_with_the_adapter_that_onnx_runtime_lacks(
    client: FlaskClient, serving: Serving
) -> None:
    kiosk = {"name": "kiosk", "max_bytes": 10**6, "format": "onnx:fp32"}
    lora = {"rank": 4, "ship": "attached"}
    job = serving.submit(targets=[kiosk], formats=["safetensors", "onnx:fp32"], lora=lora)
    variant = serving.publish(job, {"README.md": b"# x"})
    small = {"max_bytes": 30_000, "format": "safetensors", "context_tokens": 64}
    assert client.put("/v1/targets/watch", json=small).status_code == 200
    metrics = {**METRICS, "model": "safetensors with adapter"}
    judged = client.post(path(variant), json=body(variant, metrics=metrics, target="watch")).get_json()
    assert judged["over_budget"][0].startswith("file, adapter and KV cache")


def test_figures_that_settle_nothing_give_no_verdict(client: FlaskClient, variant: Variant) -> None:
    other = client.post(path(variant), json=body(variant, metrics={**METRICS, "model": "gguf:f16"})).get_json()
    assert other["fits_budget"] is None and other["over_budget"] == []
    short = client.post(path(variant), json=body(variant, context_tokens=2)).get_json()
    assert short["fits_budget"] is None


def test_figures_of_other_files_or_of_no_machine_are_refused(client: FlaskClient, variant: Variant) -> None:
    problem = problem_of(client.post(path(variant), json=body(variant, manifest_sha256="0" * 64)).data, 422)
    assert problem["errors"][0]["pointer"] == "/manifest_sha256" and "are not the files of" in problem["detail"]
    nowhere = {key: value for key, value in METRICS.items() if key != "hardware"}
    problem = problem_of(client.post(path(variant), json=body(variant, metrics=nowhere)).data, 422)
    assert problem["errors"][0]["pointer"].startswith("/metrics") and "hardware missing" in problem["detail"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('"decode_tokens_per_s": -5', "decode_tokens_per_s -5 cannot have been measured"),
        ('"load_ms": 1e999', "load_ms inf cannot have been measured"),
        ('"model": "nonsense"', "'nonsense' is no format"),
    ],
)
def test_figures_that_nothing_can_have_are_refused(
    client: FlaskClient, variant: Variant, change: str, says: str
) -> None:
    text = json.dumps(body(variant)).replace('"file_bytes"', f'{change}, "file_bytes"')
    text = text.replace('"model": "safetensors", ', "") if "model" in change else text
    problem = problem_of(client.post(path(variant), data=text, content_type="application/json").data, 422)
    assert problem["errors"][0]["pointer"] == "/metrics" and says in problem["detail"]


def test_measurements_go_with_their_variant(client: FlaskClient, variant: Variant) -> None:
    client.post(path(variant), json=body(variant))
    assert client.delete(f"/v1/variants/{variant.id}").status_code == 204
    problem_of(client.get(path(variant)).data, 404)
