"""The prune stage as the pipeline calls it, on a tiny teacher and a small file of text."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from foundry.engine.context import RunContext
from foundry.engine.prune.stage import prune, read_plan
from foundry.engine.workspace import Inputs, Workspace
from foundry.errors import BudgetUnreachable
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from tests.tiny import new_model, save, write_texts


def _prune(folder: Path, targets: list[dict[str, Any]], **options: Any) -> tuple[Workspace, list[RunEvent]]:
    teacher = folder / "teacher"
    if not teacher.exists():
        save(teacher, new_model(hidden=128, ffn=256, layers=4))
        write_texts(folder / "text.jsonl", documents=200)
    spec = parse(
        JobSpec,
        {"teacher": str(teacher), "data": "text.jsonl", "targets": targets, "prune": {"candidates": 3, **options}},
    )
    inputs = Inputs(teacher=str(teacher), data=str(folder / "text.jsonl"), data_sha256="0" * 64)
    workspace = Workspace.create(folder / "workspace", spec, inputs)
    events: list[RunEvent] = []
    context = RunContext(emit=events.append, device=torch.device("cpu"), dtype=torch.float32, seed=0)
    prune(spec, workspace, context)
    return workspace, events


def _digest(workspace: Workspace, target: str) -> str:
    path = workspace.root / "stages" / "prune" / target / "model" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_stage_writes_a_plain_checkpoint_within_each_budget(tmp_path: Path) -> None:
    targets = [{"name": "big", "max_params": 450_000}, {"name": "small", "max_params": 350_000}]
    workspace, _ = _prune(tmp_path, targets)
    for target in targets:
        plan = read_plan(workspace, target["name"])
        student = AutoModelForCausalLM.from_pretrained(workspace.student(target["name"]))
        assert sum(p.numel() for p in student.parameters()) <= target["max_params"]
        assert len(plan.candidates) == 3
        assert plan.shape == plan.candidates[0].shape
        scores = [c.held_out_kl for c in plan.candidates]
        assert scores == sorted(scores)  # type: ignore[type-var]


def test_stage_keeps_the_teacher_and_says_so_when_it_fits(tmp_path: Path) -> None:
    workspace, events = _prune(tmp_path, [{"name": "roomy", "max_params": 10_000_000}])
    assert read_plan(workspace, "roomy").cuts_nothing
    assert [e.data["target"] for e in events if e.type is EventType.STAGE_SKIPPED] == ["roomy"]
    assert AutoModelForCausalLM.from_pretrained(workspace.student("roomy")).config.hidden_size == 128


def test_stage_gives_the_same_bytes_when_run_again(tmp_path: Path) -> None:
    targets = [{"name": "small", "max_params": 350_000}]
    first, _ = _prune(tmp_path / "a", targets)
    second, _ = _prune(tmp_path / "b", targets)
    assert _digest(first, "small") == _digest(second, "small")


def test_stage_does_not_repeat_a_target_that_is_written(tmp_path: Path) -> None:
    targets = [{"name": "small", "max_params": 350_000}]
    workspace, _ = _prune(tmp_path, targets)
    (workspace.root / "stages" / "prune" / "done.json").unlink()
    _, events = _prune(tmp_path, targets)
    assert not [e for e in events if e.type is EventType.PROGRESS]
    assert workspace.is_done("prune")


def test_stage_refuses_before_work_when_a_budget_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(BudgetUnreachable, match="allow at least"):
        _prune(tmp_path, [{"name": "good", "max_params": 600_000}, {"name": "dust", "max_params": 100}])
    assert not list((tmp_path / "workspace" / "stages" / "prune").rglob("*.safetensors"))
