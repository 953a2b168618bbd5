"""The distill stage on a workspace as the prune stage leaves it."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from foundry.engine.context import RunContext, Stopped
from foundry.engine.distill import stage
from foundry.engine.distill.judge import has_helped
from foundry.engine.distill.stage import distill
from foundry.engine.workspace import read_json
from foundry.errors import DamagedCheckpoint, InvalidSpec
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.lifecycle import EventType
from tests import tiny
from tests.unit.engine.conftest import FFN, Heard, MakeWorkspace, write_student

SHORT = {"tokens": 4096, "batch_tokens": 512, "checkpoint_steps": 3, "learning_rate": 3e-3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_distill_writes_a_plain_model_and_its_history_for_every_target(
    make_workspace: MakeWorkspace, context: RunContext
) -> None:
    spec, workspace = make_workspace(distill=SHORT)
    distill(spec, workspace, context)
    assert workspace.is_done("distill")
    for target, ffn in FFN.items():
        folder = workspace.stage("distill", target)
        assert open_checkpoint(folder / "model").shape.ffn == ffn
        assert (folder / "model" / "tokenizer.json").exists()
        history = read_json(folder / "history.json")
        assert history["steps"] == 8
        said = workspace.result("distill")["targets"][target]
        assert said["held_out_loss_after"] == history["rows"][-1]["held_out_loss"]
        assert workspace.student(target) == folder / "model"
    assert not (workspace.stage("distill") / "checkpoints").exists()


def test_a_student_that_distillation_made_worse_is_shipped_as_it_was_cut(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace(distill=SHORT | {"tokens": 1024, "learning_rate": 1.0})
    distill(spec, workspace, context)
    warnings = [event for event in heard.of(EventType.WARNING) if event.data.get("kept") is False]
    assert [event.data["target"] for event in warnings] == list(FFN)
    assert "lower distill.learning_rate (it peaks at 1)" in warnings[0].message
    for target in FFN:
        folder = workspace.stage("distill", target)
        cut, shipped = weights(workspace.stage("prune", target) / "model"), weights(folder / "model")
        assert all(torch.equal(shipped[name], tensor.bfloat16()) for name, tensor in cut.items())
        said, history = workspace.result("distill")["targets"][target], read_json(folder / "history.json")
        assert said["held_out_loss_after"] == said["held_out_loss_before"] < history["rows"][-1]["held_out_loss"]


def test_the_teacher_is_gone_when_students_are_judged(
    make_workspace: MakeWorkspace, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, workspace = make_workspace(distill=SHORT | {"tokens": 1024})
    before, found = teachers(), []

    def watched(*args: Any) -> bool:
        found.append(teachers())
        return has_helped(*args)

    monkeypatch.setattr(stage, "has_helped", watched)
    distill(spec, workspace, context)
    assert found == [before] * len(FFN)


def teachers() -> int:
    """How many models as large as the teacher there are."""
    gc.collect()
    models = (one for one in gc.get_objects() if type(one) is LlamaForCausalLM)
    return sum(model.config.intermediate_size == 64 for model in models)


def test_distill_gives_the_same_files_when_stopped_and_started_again(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, whole = make_workspace("whole", distill=SHORT)
    distill(spec, whole, context)
    spec, halted = make_workspace("halted", distill=SHORT)
    heard.events.clear()
    heard.stop_after = 5
    with pytest.raises(Stopped):
        distill(spec, halted, context)
    assert not halted.is_done("distill")
    heard.stop_after = None
    distill(spec, halted, context)
    for target in FFN:
        one, other = (weights(w.stage("distill", target) / "model") for w in (whole, halted))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_distill_is_the_same_for_one_target_whether_or_not_another_is_trained_beside_it(
    make_workspace: MakeWorkspace, context: RunContext
) -> None:
    spec, both = make_workspace("both", distill=SHORT)
    distill(spec, both, context)
    spec, alone = make_workspace("alone", distill=SHORT)
    write_student(alone, "large", 64, cuts_nothing=True)
    distill(spec, alone, context)
    one, other = (weights(w.stage("distill", "small") / "model") for w in (both, alone))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_distill_skips_a_target_of_which_nothing_was_cut(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace(distill=SHORT)
    write_student(workspace, "large", 64, cuts_nothing=True)
    distill(spec, workspace, context)
    (skipped,) = heard.of(EventType.STAGE_SKIPPED)
    assert skipped.data["target"] == "large"
    assert set(workspace.result("distill")["targets"]) == {"small"}
    assert workspace.student("large") == workspace.stage("prune", "large") / "model"


def test_distill_runs_in_bfloat16_with_float32_masters(make_workspace: MakeWorkspace, bf16_context: RunContext) -> None:
    spec, workspace = make_workspace(distill={**SHORT, "tokens": 10_000})
    distill(spec, workspace, bf16_context)
    rows = read_json(workspace.stage("distill", "large") / "history.json")["rows"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]


def test_distill_says_how_many_documents_it_had_to_hold_out(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard, tmp_path: Path
) -> None:
    data = tiny.write_texts(tmp_path / "few.jsonl", documents=20)
    spec, workspace = make_workspace(data=data, distill=SHORT)
    distill(spec, workspace, context)
    assert any("documents are held out" in event.message for event in heard.of(EventType.LOG))


def test_distill_warns_when_the_text_is_read_many_times(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard, tmp_path: Path
) -> None:
    data = tiny.write_texts(tmp_path / "few.jsonl", documents=20)
    spec, workspace = make_workspace(data=data, distill={**SHORT, "tokens": 10_000})
    distill(spec, workspace, context)
    assert any("passes over the same text" in event.message for event in heard.of(EventType.WARNING))


def test_distill_refuses_a_sequence_longer_than_the_context_before_it_starts(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace(distill={**SHORT, "sequence_tokens": 128})
    with pytest.raises(InvalidSpec, match="give at most 64") as caught:
        distill(spec, workspace, context)
    assert caught.value.problems[0].pointer == "/distill/sequence_tokens"
    assert not heard.of(EventType.PROGRESS)


def test_distill_refuses_a_tokenizer_with_more_tokens_than_the_teacher(
    make_workspace: MakeWorkspace, context: RunContext, tmp_path: Path
) -> None:
    teacher = tiny.save(tmp_path / "mixed", tiny.new_model(vocabulary=300))
    spec, workspace = make_workspace(teacher=teacher, distill=SHORT)
    with pytest.raises(DamagedCheckpoint, match="the tokenizer beside the teacher is not its own"):
        distill(spec, workspace, context)


def test_distill_refuses_a_student_of_another_vocabulary(
    make_workspace: MakeWorkspace, context: RunContext, tmp_path: Path
) -> None:
    teacher = tiny.save(tmp_path / "wide", tiny.new_model(vocabulary=384))
    spec, workspace = make_workspace(teacher=teacher, distill=SHORT)
    with pytest.raises(DamagedCheckpoint, match="the student predicts 320 tokens and its teacher 384"):
        distill(spec, workspace, replace(context))
