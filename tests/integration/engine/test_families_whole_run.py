"""Every stage of a job, on teachers built in every way that a family table can describe."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from foundry.engine import pipeline
from foundry.engine.context import RunContext
from foundry.engine.export.stage import export
from foundry.engine.workspace import Inputs, Workspace, read_json
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from tests.export_questions import ask_here
from tests.families import save_genuine
from tests.tiny import write_texts

pytestmark = pytest.mark.integration

BUILT = {
    "phi3": "fused projections",
    "gemma3": "norms behind writers, scaled embeddings, layer types",
    "gpt2": "transposed matrices, layer norms, learned positions",
    "gpt_neox": "q, k and v of each head together, parallel branches",
    "granite": "scaled logits",
    "olmo2": "no norm in front of a reader",
    "qwen3_moe": "experts",
}


@pytest.mark.parametrize("name", BUILT, ids=[f"{name}: {how}" for name, how in BUILT.items()])
def test_every_stage_runs_when_a_family_has(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The runtime's own code opens the file, but here: a process that loads transformers costs more than all stages.
    monkeypatch.setitem(pipeline._STAGE, "export", partial(export, ask=ask_here))
    teacher = save_genuine(tmp_path / "teacher", name, layers=3)
    write_texts(tmp_path / "text.jsonl", documents=200)
    limit = int(0.7 * teacher.num_parameters())
    spec = parse(
        JobSpec,
        {
            "teacher": str(tmp_path / "teacher"), "data": "text.jsonl", "formats": ["safetensors"],
            "targets": [{"name": "kiosk", "max_params": limit, "context_tokens": 64}],
            "correct": {"tokens": 1500}, "prune": {"calibration_tokens": 2048, "candidates": 2},
            "distill": {"tokens": 3000}, "lora": {"tokens": 1500, "rank": 4}, "evaluate": {"tokens": 512},
        },
    )  # fmt: skip
    inputs = Inputs(teacher=spec.teacher, data=str(tmp_path / "text.jsonl"), data_sha256="0" * 64)
    workspace = Workspace.create(tmp_path / "workspace", spec, inputs)
    events: list[RunEvent] = []
    context = RunContext(emit=events.append, device=torch.device("cpu"), dtype=torch.float32, seed=0)
    pipeline.run(spec, workspace, context)

    (variant,) = pipeline.variants(workspace)
    manifest = read_json(variant / "manifest.json")
    assert manifest["family"] == name and manifest["parameters"] <= limit and not manifest["failed_formats"]
    student = open_checkpoint(variant / "safetensors")
    assert student.shape != open_checkpoint(tmp_path / "teacher").shape
    model = AutoModelForCausalLM.from_pretrained(variant / "safetensors", dtype=torch.float32)
    answer = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > 3
    # The teacher's weights are random: what a student can learn from it is its distribution, not the text.
    apart = {row["model"]: row["kl_to_teacher"] for row in manifest["metrics"]}
    assert apart["distilled"] < apart["pruned"]
    assert any(event.type is EventType.STAGE_COMPLETED and "lora" in event.message for event in events)
