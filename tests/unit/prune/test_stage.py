"""The prune stage as the pipeline calls it, on a tiny teacher and a small file of text."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from foundry.engine.context import RunContext, Stopped
from foundry.engine.prune.stage import check_room, prune, read_plan
from foundry.engine.prune.texts import Texts
from foundry.engine.workspace import Inputs, Workspace
from foundry.errors import BudgetUnreachable, FoundryError, OutOfMemory, StorageFull
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, RunEvent
from foundry.spec.record import parse
from tests.cutting import CONTEXT, IDS, packed
from tests.tiny import new_model, save, write_texts

BIG = {"name": "big", "max_params": 110_000}
SMALL = {"name": "small", "max_params": 85_000}


def _prune(
    folder: Path, targets: list[dict[str, Any]], should_stop: Callable[[], bool] = lambda: False
) -> tuple[Workspace, list[RunEvent]]:
    teacher = folder / "teacher"
    if not teacher.exists():
        save(teacher, new_model(hidden=64, ffn=128, layers=3))
        write_texts(folder / "text.jsonl", documents=100)
    options = {"candidates": 3, "local_epochs": 1, "calibration_tokens": 6000}
    spec = parse(JobSpec, {"teacher": str(teacher), "data": "text.jsonl", "targets": targets, "prune": options})
    inputs = Inputs(teacher=str(teacher), data=str(folder / "text.jsonl"), data_sha256="0" * 64)
    workspace = Workspace.create(folder / "workspace", spec, inputs)
    events: list[RunEvent] = []
    context = RunContext(
        emit=events.append, should_stop=should_stop, device=torch.device("cpu"), dtype=torch.float32, seed=0
    )
    prune(spec, workspace, context)
    return workspace, events


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Pruned for two targets without a break."""
    return _prune(tmp_path_factory.mktemp("whole"), [BIG, SMALL])[0]


def _digest(workspace: Workspace, target: str) -> str:
    path = workspace.root / "stages" / "prune" / target / "model" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_stage_writes_a_plain_checkpoint_within_each_budget(whole: Workspace) -> None:
    for target in (BIG, SMALL):
        plan = read_plan(whole, str(target["name"]))
        student = AutoModelForCausalLM.from_pretrained(whole.student(str(target["name"])))
        assert sum(p.numel() for p in student.parameters()) <= int(target["max_params"])
        assert len(plan.candidates) == 3
        assert plan.shape == plan.candidates[0].shape
        scores = [c.held_out_kl for c in plan.candidates]
        assert scores == sorted(scores)  # type: ignore[type-var]


def test_stage_keeps_the_teacher_and_says_so_when_it_fits(tmp_path: Path) -> None:
    workspace, events = _prune(tmp_path, [{"name": "roomy", "max_params": 10_000_000}])
    assert read_plan(workspace, "roomy").cuts_nothing
    assert [e.data["target"] for e in events if e.type is EventType.STAGE_SKIPPED] == ["roomy"]
    assert AutoModelForCausalLM.from_pretrained(workspace.student("roomy")).config.hidden_size == 64


def test_stage_gives_the_same_bytes_when_stopped_again_and_again(tmp_path: Path, whole: Workspace) -> None:
    """In the calibration, between candidates and in the growth: each time it goes on from what it has."""
    starts, patience, workspace = 0, count(12, 3), None
    while workspace is None:
        starts += 1
        asked, limit = count(), next(patience)
        with suppress(Stopped):
            workspace, last = _prune(tmp_path, [BIG, SMALL], lambda: next(asked) == limit)  # noqa: B023
    assert starts > 3
    assert len([e for e in last if e.type is EventType.PROGRESS]) < 3 + 2 * 3  # calibrated, and grown twice
    for name in ("big", "small"):
        assert _digest(workspace, name) == _digest(whole, name)
        assert read_plan(workspace, name) == read_plan(whole, name)
    left = {path.name for path in (workspace.root / "stages" / "prune").rglob("*") if path.name.startswith(".")}
    assert not left


def test_stage_goes_on_after_a_crash_in_the_middle_of_a_layer(tmp_path: Path, whole: Workspace) -> None:
    asked = count()

    def crash() -> bool:
        if next(asked) == 20:
            raise RuntimeError("power cut")
        return False

    with pytest.raises(RuntimeError, match="power cut"):
        _prune(tmp_path, [BIG, SMALL], crash)
    again, _ = _prune(tmp_path, [BIG, SMALL])
    assert _digest(again, "small") == _digest(whole, "small")


def test_stage_does_not_repeat_a_target_that_is_written(whole: Workspace) -> None:
    (whole.root / "stages" / "prune" / "done.json").unlink()
    _, events = _prune(whole.root.parent, [BIG, SMALL])
    assert not [e for e in events if e.type is EventType.PROGRESS]
    assert whole.is_done("prune")


@pytest.mark.parametrize(
    ("sizes", "error", "way_out"),
    [
        ({"hidden": 200_000, "ffn": 800_000}, OutOfMemory, "a machine with more memory"),
        ({"layers": 10_000_000}, StorageFull, "make room"),
    ],
    ids=["memory", "disk"],
)
def test_stage_says_before_the_work_that_there_is_no_room(
    tmp_path: Path, sizes: dict[str, int], error: type[FoundryError], way_out: str
) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "teacher", new_model()))
    larger = replace(checkpoint, shape=checkpoint.shape.model_copy(update=sizes))
    texts = Texts.of(packed(IDS), packed(IDS))
    with pytest.raises(error, match=way_out):
        check_room(larger, texts, tmp_path, CONTEXT)


def test_stage_refuses_before_work_when_a_budget_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(BudgetUnreachable, match="allow at least"):
        _prune(tmp_path, [{"name": "good", "max_params": 600_000}, {"name": "dust", "max_params": 100}])
    assert not list((tmp_path / "workspace" / "stages" / "prune").rglob("*.safetensors"))
