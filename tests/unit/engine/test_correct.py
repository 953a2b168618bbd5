"""Teacher correction is kept when it helps, and only then."""

import gc
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from foundry.engine import correct as correct_module
from foundry.engine.context import RunContext, Stopped
from foundry.engine.correct import correct
from foundry.engine.packed import Packed
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.lifecycle import EventType
from tests.unit.engine.conftest import Heard, MakeWorkspace


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param({"method": "lora", "tokens": 4096, "learning_rate": 1e-2, "rank": 4}, id="lora"),
        pytest.param({"method": "full", "tokens": 4096, "learning_rate": 3e-3}, id="full"),
    ],
)
def test_correct_keeps_the_teacher_that_predicts_held_out_text_better(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard, stage: dict[str, object]
) -> None:
    spec, workspace = make_workspace(correct=stage)
    correct(spec, workspace, context)
    result = workspace.result("correct")
    assert result["kept"]
    assert result["held_out_loss_after"] < result["held_out_loss_before"]
    assert workspace.teacher == str(workspace.stage("correct") / "teacher")
    assert open_checkpoint(workspace.stage("correct") / "teacher").shape.ffn == 64
    (said,) = [event for event in heard.of(EventType.LOG) if "held-out loss went from" in event.message]
    assert said.message.endswith("the corrected teacher is used")
    assert {path.name for path in workspace.stage("correct").iterdir()} == {"done.json", "history.json", "teacher"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_model_that_was_trained_is_gone_before_others_are_measured(
    make_workspace: MakeWorkspace, context: RunContext, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """On an accelerator two of them may be more than fits."""

    def models() -> int:
        gc.collect()
        return sum(type(one) is LlamaForCausalLM for one in gc.get_objects())

    there = []

    def counting(path: Path, held_out: Packed, context: RunContext) -> float:
        there.append(models() - before)
        return measured(path, held_out, context)

    measured = correct_module._loss
    monkeypatch.setattr(correct_module, "_loss", counting)
    spec, workspace = make_workspace(correct={"method": method, "tokens": 512, "learning_rate": 1e-3})
    before = models()
    correct(spec, workspace, context)
    assert there == [0, 0]


def test_correct_leaves_the_teacher_as_it_was_when_the_loss_rises(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace(correct={"method": "full", "tokens": 256, "learning_rate": 5.0})
    correct(spec, workspace, context)
    result = workspace.result("correct")
    assert not result["kept"]
    assert result["held_out_loss_after"] >= result["held_out_loss_before"]
    assert workspace.teacher == workspace.inputs.teacher
    (said,) = [event for event in heard.of(EventType.LOG) if "held-out loss went from" in event.message]
    assert f"{result['held_out_loss_before']:.4f} to {result['held_out_loss_after']:.4f}" in said.message
    assert said.data["kept"] is False


def test_correct_leaves_the_teacher_as_it_was_when_the_run_diverges(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace(correct={"method": "full", "tokens": 1024, "learning_rate": 5.0})
    correct(spec, workspace, context)
    assert workspace.result("correct") == {"kept": False}
    assert workspace.teacher == workspace.inputs.teacher
    (said,) = heard.of(EventType.WARNING)
    assert "Lower correct.learning_rate" in said.message


def test_correct_goes_on_from_its_checkpoint_when_started_again(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace(correct={"tokens": 1024, "rank": 4})
    heard.stop_after = 9
    with pytest.raises(Stopped):
        correct(spec, workspace, context)
    heard.stop_after = None
    heard.events.clear()
    correct(spec, workspace, context)
    assert heard.of(EventType.PROGRESS)[0].data["step"] == 10
