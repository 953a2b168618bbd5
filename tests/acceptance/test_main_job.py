"""The main job through real processes: submit, run, be killed, resume, publish, download, answer."""

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foundry.client.client import Foundry
from foundry.engine.export.apart import LLAMACPP, ask
from foundry.engine.export.runtime import Questions
from foundry.spec.lifecycle import EventType, Status
from foundry.spec.resources import Job
from foundry.spec.variant import VariantManifest
from tests.acceptance.services import WATCH, manifests_of, runs_under, spec

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]
PROMPTS = ("def read_file(path):\n    ", "class Queue:\n    ", "Return the number of ")


@pytest.fixture(scope="module")
def undisturbed(foundry: Foundry, dataset_id: str) -> Job:
    return foundry.jobs.wait(foundry.jobs.create(spec(dataset_id)).id, progress=False, timeout=900)


def _digests(manifest: VariantManifest) -> dict[str, str]:
    return {f.path: f.sha256 for f in manifest.files if f.path.endswith((".safetensors", ".gguf"))}


def test_job_gives_one_verified_variant_per_target(foundry: Foundry, undisturbed: Job) -> None:
    assert undisturbed.status is Status.SUCCEEDED and undisturbed.attempt == 1
    manifests = manifests_of(foundry, undisturbed)
    assert set(manifests) == {"tablet", "watch"}
    for manifest in manifests.values():
        assert manifest.fits_budget and not manifest.failed_formats
        assert manifest.budget.max_params is not None and manifest.parameters <= manifest.budget.max_params
        assert {f.format for f in manifest.files if f.format} == {"safetensors", "gguf:f16", "gguf:q4_k_m"}
        losses = {m.model: m.held_out_loss for m in manifest.metrics}
        assert losses["teacher"] < losses["distilled"] < losses["pruned"]


def test_events_are_gap_free_and_name_every_stage(foundry: Foundry, undisturbed: Job) -> None:
    events = list(foundry.jobs.events(undisturbed.id))
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert events[0].type is EventType.SUBMITTED and events[-1].type is EventType.SUCCEEDED
    completed = [e.data["stage"] for e in events if e.type is EventType.STAGE_COMPLETED]
    assert completed == ["prune", "distill", "evaluate", "export"]


def test_downloaded_gguf_continues_like_transformers_at_f16(foundry: Foundry, undisturbed: Job, tmp_path: Path) -> None:
    variant_id = undisturbed.variant_ids[0]
    out = foundry.variants.download(variant_id, tmp_path / "variant")
    manifest = VariantManifest.model_validate_json((out / "manifest.json").read_text())
    for artifact in manifest.files:
        assert hashlib.sha256((out / artifact.path).read_bytes()).hexdigest() == artifact.sha256
    tokenizer = AutoTokenizer.from_pretrained(out / "safetensors")
    model = AutoModelForCausalLM.from_pretrained(out / "safetensors", dtype=torch.float32)
    (gguf,) = (f.path for f in manifest.files if f.format == "gguf:f16")
    prompts = [tokenizer(p)["input_ids"] for p in PROMPTS]
    questions = Questions(model=str(out / gguf), prompts=prompts, continue_tokens=32)
    answers = ask(LLAMACPP, questions)
    for prompt, continuation in zip(prompts, answers.continuations, strict=True):
        ids = torch.tensor([prompt])
        greedy = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        assert continuation.tokens == greedy[0, len(prompt) :].tolist()


def test_killed_run_resumes_and_ends_with_the_same_weights(
    foundry: Foundry, dataset_id: str, undisturbed: Job, folder: Path
) -> None:
    job = foundry.jobs.create(spec(dataset_id, targets=[WATCH]))
    for event in foundry.jobs.events(job.id):
        if event.type is EventType.CHECKPOINT:
            break
    (run,) = runs_under(folder)
    run.kill()
    finished = foundry.jobs.wait(job.id, progress=False, timeout=900)
    assert finished.attempt == 2
    outcomes = [attempt.outcome for attempt in foundry.jobs.attempts(job.id)]
    assert sorted(outcomes) == ["lost", "succeeded"]  # type: ignore[type-var]
    before, after = manifests_of(foundry, undisturbed)["watch"], manifests_of(foundry, finished)["watch"]
    assert after.training["distill"]["steps"] == before.training["distill"]["steps"]
    # The other job made a tablet's variant beside it, which must not matter to this one either.
    assert _digests(after) == _digests(before)
