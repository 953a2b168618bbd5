"""The console's pages about evaluations and measurements: asked for once, refused at the field, shown as found."""

from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask

from api.console.evaluations import scored
from foundry.spec.access import PROJECT_SCOPES, Scope
from foundry.spec.evaluation import EvaluationResult
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.measurement import NewMeasurement, judge
from foundry.spec.resources import Variant
from foundry.spec.suite import SuiteResult, TaskResult
from foundry.spec.variant import Metrics, VariantManifest
from tests.serving import Serving
from tests.unit.api.browsing import Browser

FORMS = {"safetensors/model.safetensors": "safetensors", "kiosk-q4_k_m.gguf": "gguf:q4_k_m"}
FOUND = EvaluationResult(
    benchmarks=SuiteResult(
        suite="quick", model="kiosk", limit=200, seed=1234, harness="lm-eval 0", hardware="Cortex-A76, 4 threads",
        finished_at=datetime.now(UTC),
        tasks=(
            TaskResult(
                task="winogrande", title="Winogrande", status="done", metric="acc", value=0.5, standard_error=0.02,
                shots=0, examples=200, examples_of=1267, seconds=75.0,
            ),
            TaskResult(task="hellaswag", title="HellaSwag", status="missing", note="its data cannot be fetched"),
        ),
    ),
    held_out=(
        Metrics(model="teacher", parameters=20_000, held_out_loss=2.5, tokens=4096, documents=40),
        Metrics(
            model="kiosk", parameters=10_000, held_out_loss=3.25, loss_over_teacher=0.75, top1_agreement_ratio=0.625,
            tokens=4096, documents=40, intervals={"held_out_loss": (3.125, 3.375)},
        ),
    ),
)  # fmt: skip


@pytest.fixture
def browser(app: Flask, serving: Serving) -> Browser:
    return Browser(app, serving.key)


@pytest.fixture
def variant(serving: Serving) -> Variant:
    target = {"name": "kiosk", "format": "gguf:q4_k_m", "max_bytes": 10**6, "context_tokens": 64}
    job = serving.submit(targets=[target])
    return serving.publish(job, {path: path.encode() for path in FORMS}, forms=FORMS)


def _fields(browser: Browser, variant: Variant, **changes: Any) -> dict[str, Any]:
    """The form about a variant, filled in."""
    fields = browser.form(f"/evaluations/new?model={variant.id}", "/evaluations")
    for name, value in changes.items():
        fields.setlist(name, value if isinstance(value, list) else [value])
    return dict(fields.lists())


def test_a_form_sent_twice_is_one_evaluation(browser: Browser, serving: Serving, variant: Variant) -> None:
    fields = _fields(browser, variant, format="gguf:q4_k_m", limit="10", name="on the device")
    first, again = (browser.post("/evaluations", also=fields) for _ in range(2))
    assert (first.status_code, again.status_code) == (303, 303)
    assert first.headers["Location"] == again.headers["Location"]
    (made,) = serving.memory.evaluations.list(serving.project).data
    spec = made.spec
    assert (spec.model, spec.format, spec.suite, spec.limit) == (variant.id, "gguf:q4_k_m", "quick", 10)
    page = browser.get(first.headers["Location"]).text
    assert "on the device" in page and "waits for a worker" in page and "data-live=" in page
    assert made.id in browser.get(f"/variants/{variant.id}").text


def test_a_form_offers_what_a_variant_has(browser: Browser, serving: Serving, variant: Variant) -> None:
    page = browser.get(f"/evaluations/new?model={variant.id}").text
    assert 'value="gguf:q4_k_m"' in page and 'value="gguf:f16"' not in page and f'value="{variant.id}"' in page
    assert 'value="gguf:f16"' in browser.get("/evaluations/new").text
    model = serving.memory.models.register(serving.project, "tiny", "hub", "org/tiny@main", None).id
    assert f'value="{model}"' in browser.get(f"/evaluations/new?model={model}").text
    assert browser.get("/evaluations/new?model=mdl_none").status_code == 404


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"suite": ""}, "suite", "give a suite"),
    ({"tasks": ["gsm8k"]}, "tasks", "has no task"),
    ({"limit": "few"}, "limit", "valid integer"),
    ({"limit": "0"}, "limit", "greater than 0"),
    ({"format": "gguf:f16"}, "format", "has no gguf:f16"),
    ({"data": "ds_none"}, "data", "upload the file first"),
    ({"teacher": "mdl_none"}, "teacher", "give the id of a dataset"),
    ({"model": "var_none"}, "model", "give the id of a variant"),
    ({"model": "/etc"}, "model", "neither a variant"),
    ({"name": "n" * 300}, "name", "at most 200"),
]


def test_a_wrong_field_comes_back_with_its_words(browser: Browser, serving: Serving, variant: Variant) -> None:
    for changes, field, words in WRONG:
        answer = browser.post("/evaluations", also=_fields(browser, variant, **changes))
        assert (answer.status_code, words in answer.text) == (422, True), (changes, answer.text)
        assert f'id="{field}-wrong"' in answer.text, (changes, answer.text)
    assert not serving.memory.evaluations.list(serving.project).data


def test_a_form_that_no_page_sends_is_refused_at_its_field(browser: Browser, variant: Variant) -> None:
    for action, fields in (("/evaluations", {"limit": "1", "limit.x": "1"}), ("/jobs", {"seed": "1", "seed.x.y": "1"})):
        answer = browser.post(action, also={"model": variant.id, **fields})
        assert (answer.status_code, "has a value already" in answer.text) == (422, True), answer.text


def test_a_gguf_is_not_scored_on_data_and_the_form_says_so_at_the_data(
    browser: Browser, serving: Serving, variant: Variant
) -> None:
    fields = _fields(browser, variant, format="gguf:q4_k_m", data=serving.dataset.id, tokens="1e4")
    answer = browser.post("/evaluations", also=fields)
    assert answer.status_code == 422 and 'id="data-wrong"' in answer.text and "leave data out" in answer.text
    assert 'value="1e4"' in answer.text  # what was typed is still there
    assert browser.post("/evaluations", also=fields | {"format": ["safetensors"]}).status_code == 303


def test_what_was_found_stands_on_the_page_with_its_intervals(
    browser: Browser, serving: Serving, variant: Variant
) -> None:
    evaluation = serving.evaluate(variant, teacher="mdl_1", data=serving.dataset.id)
    claim = serving.memory.jobs.claim("tester", evaluation.id)
    assert claim is not None
    found = {"result": FOUND.model_dump(mode="json"), "stage": "evaluate"}
    serving.memory.jobs.append(claim, [RunEvent(type=EventType.METRICS, message="winogrande is done", data=found)])
    page = browser.get(f"/evaluations/{evaluation.id}").text
    assert "2 of 4 tasks are finished" in page
    for words in ("50.0%", "46.1% to 53.9%", "missing", "its data cannot be fetched", "200 of 1,267", "1 min 15 s"):
        assert words in page
    for words in ("3.250", "3.125 to 3.375", "+0.750", "62.5%", "4,096 held-out tokens of 40 documents"):
        assert words in page
    assert f"/v1/customization/jobs/{variant.job_id}/report.html" in page
    fragment = browser.get(f"/evaluations/{evaluation.id}/panel", **{"X-Fragment": "yes"}).text
    assert "46.1% to 53.9%" in fragment and "<html" not in fragment
    serving.memory.jobs.succeed(claim, result=found["result"])
    page = browser.get(f"/evaluations/{evaluation.id}").text
    assert "tasks are finished" not in page and "data-live=" not in page and "Delete the evaluation" in page


@pytest.mark.parametrize(
    ("value", "error", "interval"),
    [(0.5, 0.1, (0.304, 0.696)), (0.99, 0.1, (0.794, 1.0)), (0.01, 0.1, (0.0, 0.206)), (0.5, None, None)],
)
def test_an_interval_reaches_two_standard_errors_and_never_beyond_all(
    value: float, error: float | None, interval: tuple[float, float] | None
) -> None:
    task = TaskResult(task="t", title="T", status="done", value=value, standard_error=error)
    assert scored(task).interval == (None if interval is None else pytest.approx(interval))


def test_an_evaluation_of_a_variant_that_is_gone_still_shows(
    browser: Browser, serving: Serving, variant: Variant
) -> None:
    evaluation = serving.evaluate(variant)
    assert browser.post(f"/evaluations/{evaluation.id}/cancel").status_code == 303
    serving.memory.removal.variant(serving.project, variant.id)
    page = browser.get(f"/evaluations/{evaluation.id}")
    assert page.status_code == 200 and "Nothing was measured before it ended" in page.text
    assert "report.html" not in page.text


def test_a_variant_shows_what_it_did_on_devices_and_who_sent_it(
    app: Flask, browser: Browser, serving: Serving, variant: Variant
) -> None:
    assert "foundry measure kiosk --upload" in browser.get(f"/variants/{variant.id}").text
    sender, plaintext = serving.memory.keys.create(serving.project, "the hall", {Scope.VARIANTS_WRITE})
    manifest = VariantManifest.model_validate(serving.memory.variants.manifest(serving.project, variant.id))
    metrics = {
        "model": "gguf:q4_k_m", "file_bytes": 2_000_000, "hardware": "Cortex-A76, 4 threads", "runtime": "llama.cpp 1",
        "decode_tokens_per_s": 21.5, "peak_memory_bytes": 5_000_000, "load_ms": 1500,
    }  # fmt: skip
    body = {"manifest_sha256": variant.manifest_sha256, "metrics": metrics, "context_tokens": 64, "device": "kiosk 7"}
    answer = app.test_client().post(
        f"/v1/variants/{variant.id}/measurements", json=body, headers={"Authorization": f"Bearer {plaintext}"}
    )
    assert answer.status_code == 201
    assert judge(NewMeasurement.model_validate(body), manifest, manifest.budget).fits_budget is False
    page = browser.get(f"/variants/{variant.id}").text
    for words in ("kiosk 7", "Cortex-A76, 4 threads", "21.5 tokens/s", "5 MB", "1.5 s", "more than 1,000,000"):
        assert words in page.replace("\N{NO-BREAK SPACE}", " "), words
    assert "with the key the hall" in page
    looker = Browser(app, serving.memory.keys.create(serving.project, "l", PROJECT_SCOPES - {Scope.PROJECT_READ})[1])
    page = looker.get(f"/variants/{variant.id}").text
    assert f"with the key {sender.id}" in page and "the hall" not in page
