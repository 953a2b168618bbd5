"""What forms make: once and not twice, as the API would, and with words at the field that is wrong."""

import io
import json
import re
from typing import Any

import pytest
from flask import Flask

from api.app import create_app
from api.console.job_form import spec_document, values_of
from api.console.variants import gates_of
from foundry.spec.family import families
from foundry.spec.job import CustomTarget, JobSpec
from foundry.spec.record import parse
from foundry.spec.target import budget_of
from foundry.spec.variant import Metrics, VariantManifest
from foundry.spec.words import size
from tests.checkpoints import LLAMA, write_checkpoint
from tests.servers import free_port
from tests.serving import DATA, Serving
from tests.unit.api.browsing import Browser


@pytest.fixture
def browser(app: Flask, serving: Serving) -> Browser:
    return Browser(app, serving.key)


def _job_fields(browser: Browser, serving: Serving, **changes: Any) -> dict[str, Any]:
    """The form of a new job, filled in."""
    fields = browser.form("/jobs/new", "/jobs")
    device = {"own.name": "kiosk", "own.limit": "max_params", "own.amount": "20_000"}
    for name, value in ({"teacher": str(serving.teacher), "data": serving.dataset.id} | device | changes).items():
        fields.setlist(name.replace("__", "."), value if isinstance(value, list) else [value])
    return dict(fields.lists())


def test_a_form_sent_twice_is_one_job(browser: Browser, serving: Serving) -> None:
    fields = _job_fields(browser, serving, name="twice")
    first, again = (browser.post("/jobs", also=fields) for _ in range(2))
    assert (first.status_code, again.status_code) == (303, 303)
    assert first.headers["Location"] == again.headers["Location"]
    page = serving.memory.jobs.list(serving.project)
    assert [(job.name, job.status) for job in page.data] == [("twice", "queued")]
    assert page.data[0].spec.distill is not None and page.data[0].spec.lora is None


def test_a_form_changed_after_it_was_sent_makes_nothing_and_says_so(browser: Browser, serving: Serving) -> None:
    fields = _job_fields(browser, serving)
    assert browser.post("/jobs", also=fields).status_code == 303
    answer = browser.post("/jobs", also=fields | {"name": ["another"]})
    assert (answer.status_code, "was used before" in answer.text) == (422, True)
    assert len(serving.memory.jobs.list(serving.project).data) == 1
    assert browser.post("/jobs", also=_job_fields(browser, serving, name="another")).status_code == 303


WRONG_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"distill__tokens": "many"}, "distill.tokens", "valid integer"),
    ({"own__name": "Not A Name"}, "targets", "match pattern"),
    ({"own__amount": "1"}, "targets", "smallest"),
    ({"data": "ds_unknown"}, "data", "upload the file first"),
    ({"teacher": "/etc"}, "teacher", "there is no folder"),
    ({"formats": []}, "formats", "choose at least one format"),
    ({"own__name": ""}, "targets", "choose a target"),
    ({"more": "{"}, "more", "not JSON"),
    ({"more": "[" * 50_000}, "more", "not JSON"),
    ({"more": '{"colour": 1}'}, "colour", "unknown field"),
    ({"name": "n" * 5000}, "name", "at most 200"),
]


def test_a_wrong_field_comes_back_with_its_words(browser: Browser, serving: Serving) -> None:
    for changes, field, words in WRONG_FIELDS:
        answer = browser.post("/jobs", also=_job_fields(browser, serving, **changes))
        assert (answer.status_code, words in answer.text) == (422, True), (changes, answer.text)
        assert field == "colour" or f'id="{field}-wrong"' in answer.text, (changes, answer.text)
        assert "teacher" in changes or f'value="{serving.teacher}"' in answer.text  # what was typed is still there
    assert not serving.memory.jobs.list(serving.project).data


def test_a_clone_is_the_same_spec_whatever_the_spec_says(serving: Serving) -> None:
    full = parse(
        JobSpec,
        {
            "teacher": "mdl_1", "data": "ds_1", "name": "all of it", "seed": 7, "formats": ["gguf:q8_0"],
            "targets": ["laptop", {"name": "kiosk", "max_bytes": 10**8, "minimum_tokens_per_s": 5,
                                   "memory_bandwidth_bytes_per_s": 10**9}],
            "correct": {"method": "full", "tokens": 5}, "lora": {"rank": 4, "dropout": 0.1},
            "prune": {"axes": ["layers"], "candidates": 2, "repair": ["refit"]},
            "distill": {"tokens": 9, "loss": {"kind": "jsd", "beta": 0.1}, "temperature": 2, "decay": {"kind": "wsd"}},
            "evaluate": {"suite": "quick", "samples": 0},
        },
    )  # fmt: skip
    plain = parse(
        JobSpec, {"teacher": "a/b", "data": "ds_1", "distill": None, "targets": [{"name": "x", "max_params": 5}]}
    )
    for spec in (full, plain):
        values = values_of(spec)
        assert parse(JobSpec, spec_document(values)) == spec
    assert values_of(plain)["own.amount"] == "5"
    assert "temperature" in values_of(full)["more"]


def test_a_clone_keeps_its_parent_and_shows_its_fields(browser: Browser, serving: Serving) -> None:
    job = serving.submit(name="first", distill={"tokens": 4096})
    fields = browser.form(f"/jobs/new?from={job.id}", "/jobs")
    assert (fields["name"], fields["distill.tokens"], fields["own.name"]) == ("first", "4096", "kiosk")
    answer = browser.post("/jobs", also=dict(fields.lists()))
    assert answer.status_code == 303
    assert serving.memory.jobs.list(serving.project).data[0].parent_id == job.id


def test_an_estimate_shows_each_target_and_why_one_cannot_be_met(browser: Browser, serving: Serving) -> None:
    browser.get("/jobs/new")
    fields = {"teacher": str(serving.teacher), "targets": ["smartphone"], "formats": ["safetensors", "gguf:q8_0"],
              "own.name": "speck", "own.limit": "max_bytes", "own.amount": "10"}  # fmt: skip
    answer = browser.client.post(
        "/jobs/estimate", data=fields, headers={"X-Fragment": "yes", "X-CSRF-Token": browser.csrf}
    )
    assert answer.status_code == 200 and "<html" not in answer.text
    assert "fits uncut" in answer.text and "gguf:q8_0" in answer.text
    assert "cannot be met" in answer.text and "smallest" in answer.text
    assert answer.text.count("<svg") == 2 and "less than 0.1 s" in answer.text
    whole = browser.post("/jobs/estimate", also=fields)
    assert "<html" in whole.text and 'value="speck"' in whole.text and whole.status_code == 200
    assert not serving.memory.jobs.list(serving.project).data


@pytest.mark.parametrize(
    ("device", "beside", "too_large"), [("gguf:f16", "onnx:fp32", 0), ("onnx:fp32", "gguf:f16", 1)]
)
def test_an_estimate_counts_the_adapter_with_the_formats_whose_runtime_loads_it(
    device: str, beside: str, too_large: int, browser: Browser, serving: Serving
) -> None:
    config = LLAMA | {"intermediate_size": 512}
    teacher = write_checkpoint(serving.folder / "teachers" / "wide", config)
    llama, shape = families()["llama"], families()["llama"].shape_of(config)
    rank = 128
    kiosk = CustomTarget(name="kiosk", max_bytes=1, format=device, context_tokens=64)
    room = budget_of(kiosk, (device,), None, rank).used_bytes(llama, shape)
    serving.memory.targets.put(serving.project, kiosk.model_copy(update={"max_bytes": room}), "")
    lora = {"ship": "attached", "rank": rank}
    fields = {"teacher": str(teacher), "targets": ["kiosk"], "formats": [device, beside],
              "more": json.dumps({"lora": lora})}  # fmt: skip
    browser.get("/jobs/new")
    text = browser.post("/jobs/estimate", also=fields).text
    assert "fits uncut" in text and f"<dt>{beside}</dt>" in text and "over the device's budget" not in text
    assert text.count("more than the device has room for") == too_large


def test_the_pages_of_a_variant_count_the_adapter_that_its_device_loads(browser: Browser, serving: Serving) -> None:
    target = {"name": "kiosk", "format": "gguf:f16", "memory_bytes": 2_000_000, "runtime_overhead_bytes": 1}
    job = serving.submit(targets=[target], formats=["gguf:f16"], lora={"rank": 4, "ship": "attached"})
    rows = tuple(
        Metrics(model=model, peak_memory_bytes=peak, decode_tokens_per_s=speed)
        for model, peak, speed in (("gguf:f16", 1_900_000, 55), ("gguf:f16 with adapter", 2_100_000, 44))
    )
    files = {"kiosk-f16.gguf": bytes(1_800_000), "adapter/adapter.gguf": bytes(300_000)}
    variant = serving.publish(job, files, {"kiosk-f16.gguf": "gguf:f16"}, rows)
    shipped = VariantManifest.model_validate(serving.memory.variants.manifest(serving.project, variant.id))
    whole, memory = gates_of(shipped)
    assert whole.name.startswith("File, adapter and cache") and (whole.share or 0) > 1 and whole.passes is False
    assert memory.share == 1.05 and memory.passes is False
    text = browser.get(f"/compare?variant={variant.id}").text
    assert f">{size(2_100_000)}</td>" in text and "44 tokens/s" in text and "55 tokens/s" not in text


def test_an_estimate_of_an_unfinished_form_says_what_is_missing(browser: Browser, serving: Serving) -> None:
    browser.get("/jobs/new")
    headers = {"X-Fragment": "yes", "X-CSRF-Token": browser.csrf}
    for fields, words in [
        ({}, "Name a teacher"),
        ({"teacher": str(serving.teacher), "formats": "safetensors"}, "Choose a target"),
        ({"teacher": "/nowhere", "targets": "laptop", "formats": "safetensors"}, "there is no folder"),
        ({"teacher": str(serving.teacher), "targets": "laptop", "formats": "safetensors", "on": "distill",
          "distill.tokens": "x"}, "distill/tokens"),
    ]:  # fmt: skip
        answer = browser.client.post("/jobs/estimate", data=fields, headers=headers)
        assert (answer.status_code, words in answer.text) == (200, True), answer.text


def test_an_upload_is_kept_once_and_a_wrong_line_is_named(browser: Browser, serving: Serving) -> None:
    once = browser.form("/datasets", "/datasets")["once"]

    def send(content: bytes, name: str = "d.jsonl") -> Any:
        return browser.post("/datasets", once=once, file=(io.BytesIO(content), name))

    answer = send(DATA + b"not json\n")
    assert (answer.status_code, "line 3" in answer.text) == (422, True)
    first, again = send(DATA), send(DATA)
    assert first.status_code == 303 and first.headers["Location"] == again.headers["Location"]
    assert [one.name for one in serving.memory.datasets.list(serving.project).data] == ["d.jsonl"]
    assert not list((serving.settings.artifacts / "incoming").glob("*"))
    page = browser.get(first.headers["Location"]).text
    assert "only 2 documents" in page.lower() and ">one<" in page
    assert browser.post("/datasets").status_code == 422


def test_an_upload_may_be_as_large_as_the_service_takes_and_no_other_form(app: Flask, serving: Serving) -> None:
    reader = Browser(app, serving.key)
    app.extensions["foundry.console"].config["MAX_CONTENT_LENGTH"] = 10_000  # a test client leaks what is truly large
    large = b'{"text": "' + b"x" * 100_000 + b'"}\n'
    assert reader.post("/datasets", file=(io.BytesIO(large), "large.jsonl")).status_code == 303
    assert reader.post("/keys", name="x" * 20_000).status_code == 413


def test_a_key_and_a_secret_are_shown_once(browser: Browser, serving: Serving) -> None:
    fields = dict(browser.form("/keys", "/keys").lists()) | {
        "name": ["robot"],
        "scopes": ["jobs:read"],
        "lives_days": ["2"],
    }
    made = browser.post("/keys", also=fields)
    secret = re.search(r'id="secret">(fdy_\w+)<', made.text)
    assert made.status_code == 201 and secret
    key = serving.memory.keys.authenticate(secret[1])
    assert (key.name, list(key.scopes)) == ("robot", ["jobs:read"])
    assert key.expires_at is not None and abs((key.expires_at - key.created_at).total_seconds() - 2 * 86400) < 1
    again = browser.post("/keys", also=fields)
    assert secret[1] not in again.text and "sent before" in again.text
    assert secret[1] not in browser.get("/keys").text
    answer = browser.post("/keys", name="x", scopes="installation:admin")
    assert (answer.status_code, "further than your own" in answer.text) == (403, True)
    assert browser.post("/keys", name="x", lives_days="soon").status_code == 422
    hook = browser.post("/webhooks", url="https://example.com/hook", events="job.failed")
    assert hook.status_code == 201 and 'id="secret">whsec_' in hook.text
    assert browser.post("/webhooks", url="http://localhost/", events="job.failed").status_code == 422


def test_models_and_members_are_made_and_refused_with_words(browser: Browser, serving: Serving) -> None:
    made = browser.post("/models", kind="folder", name="tiny", path=str(serving.teacher))
    assert made.status_code == 303 and "llama" in browser.get(made.headers["Location"]).text
    for fields, words in [
        ({"kind": "folder", "name": "x", "path": "/etc"}, "there is no folder"),
        ({"kind": "hub", "name": "x", "repository": "a/b", "revision": "main"}, "pattern"),
        ({"kind": "magic", "name": "x"}, "does not match any of the expected tags"),
    ]:
        answer = browser.post("/models", **fields)
        assert (answer.status_code, words in answer.text) == (422, True), answer.text
    assert browser.post("/members", name="ada", role="editor").status_code == 303
    assert browser.post("/members", name="ada", role="editor").status_code == 409
    assert browser.post("/members", name="eve", role="king").status_code == 422


def test_a_finished_job_cannot_be_steered_and_the_page_says_why(browser: Browser, serving: Serving) -> None:
    variant = serving.publish(serving.submit(), {"weights.gguf": b"x"})
    for verb in ("pause", "resume", "cancel", "retry"):
        answer = browser.post(f"/jobs/{variant.job_id}/{verb}")
        assert (answer.status_code, "succeeded" in answer.text) == (409, True), verb


def test_figures_are_thinned_and_go_on_from_the_last_event(browser: Browser, serving: Serving) -> None:
    from foundry.spec.lifecycle import EventType, RunEvent

    job = serving.submit()
    claim = serving.memory.jobs.claim("tester", job.id)
    assert claim is not None
    said = [
        RunEvent(
            type=EventType.PROGRESS, message="", data={"stage": "distill", "step": n, "steps": 2000, "loss": 1 / n}
        )
        for n in [*range(1, 2001), 2000]
    ]
    serving.memory.jobs.append(claim, said)
    found = json.loads(browser.get(f"/jobs/{job.id}/figures").text)
    steps, loss = found["stages"]["distill"]["steps"], found["stages"]["distill"]["series"]["loss"]
    assert 300 < len(steps) <= 600 and steps[-1] == 2000 and loss[-1] == 1 / 2000 and steps == sorted(set(steps))
    assert found["last_seq"] == 2003
    page = browser.get(f"/jobs/{job.id}").text
    assert 'data-seq="2003" data-ended="no"' in page and "attempt 1 started" in page


def test_a_variant_can_be_tried_only_where_one_is_served(browser: Browser, serving: Serving) -> None:
    variant = serving.publish(serving.submit(), {"weights.gguf": b"x"})
    assert "Try it" not in browser.get(f"/variants/{variant.id}").text
    assert browser.post(f"/variants/{variant.id}/ask", prompt="hello").status_code == 404
    told = create_app(serving.settings.model_copy(update={"serving_url": f"http://127.0.0.1:{free_port()}"}))
    reader = Browser(told, serving.key)
    assert "Try it" in reader.get(f"/variants/{variant.id}").text
    answer = reader.post(f"/variants/{variant.id}/ask", prompt="<b>hello</b>")
    assert (answer.status_code, "No answer came" in answer.text) == (200, True)
    assert "&lt;b&gt;hello" in answer.text
    told.extensions["foundry"].database.close()
