"""The evaluate stage: one row for every model of a target, on the same text."""

import shutil

import pytest

from foundry.engine.context import RunContext
from foundry.engine.evaluate.stage import evaluate
from foundry.engine.workspace import read_json
from foundry.spec.lifecycle import EventType
from foundry.spec.variant import Metrics
from tests import tiny
from tests.unit.engine.conftest import FFN, Heard, MakeWorkspace


def test_evaluate_writes_teacher_and_pruned_when_nothing_else_ran(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace()
    evaluate(spec, workspace, context)
    for target in FFN:
        rows = [Metrics.model_validate(row) for row in read_json(workspace.stage("evaluate", target) / "metrics.json")]
        teacher, pruned = rows
        assert (teacher.model, pruned.model) == ("teacher", "pruned")
        assert teacher.parameters == sum(p.numel() for p in tiny.new_model().parameters())
        assert pruned.parameters == sum(p.numel() for p in tiny.new_model(ffn=FFN[target]).parameters())
        assert teacher.kl_to_teacher is None
        assert pruned.kl_to_teacher is not None and pruned.kl_to_teacher > 0
        assert teacher.tokens == pruned.tokens
    assert [event.data["target"] for event in heard.of(EventType.METRICS)] == list(FFN)
    assert heard.of(EventType.METRICS)[0].data["metrics"][0]["model"] == "teacher"


def test_evaluate_finds_no_distance_when_the_student_is_the_teacher(
    make_workspace: MakeWorkspace, context: RunContext
) -> None:
    spec, workspace = make_workspace()
    shutil.rmtree(workspace.stage("prune", "small") / "model")
    shutil.copytree(workspace.inputs.teacher, workspace.stage("prune", "small") / "model")
    evaluate(spec, workspace, context)
    teacher, pruned = read_json(workspace.stage("evaluate", "small") / "metrics.json")
    assert pruned["kl_to_teacher"] == pytest.approx(0, abs=1e-7)
    assert pruned["top1_agreement_ratio"] == 1
    assert pruned["held_out_loss"] == teacher["held_out_loss"]


def test_evaluate_names_every_model_that_a_job_can_make(make_workspace: MakeWorkspace, context: RunContext) -> None:
    spec, workspace = make_workspace()
    tiny.save(workspace.stage("correct") / "teacher", tiny.new_model(seed=9))
    for stage, seed in (("distill", 5), ("lora", 6)):
        tiny.save(workspace.stage(stage, "small") / "model", tiny.new_model(ffn=32, seed=seed))  # type: ignore[arg-type]
    evaluate(spec, workspace, context)
    rows = read_json(workspace.stage("evaluate", "small") / "metrics.json")
    assert [row["model"] for row in rows] == ["teacher", "corrected", "pruned", "distilled", "lora"]
    assert rows[0]["kl_to_teacher"] > 0 and "kl_to_teacher" not in rows[1]
    rows = read_json(workspace.stage("evaluate", "large") / "metrics.json")
    assert [row["model"] for row in rows] == ["teacher", "corrected", "pruned"]


def test_evaluate_keeps_what_is_written_when_started_again(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = make_workspace()
    evaluate(spec, workspace, context)
    before = (workspace.stage("evaluate", "small") / "metrics.json").stat().st_mtime_ns
    (workspace.stage("evaluate", "large") / "metrics.json").unlink()
    heard.events.clear()
    evaluate(spec, workspace, context)
    assert (workspace.stage("evaluate", "small") / "metrics.json").stat().st_mtime_ns == before
    assert [event.data["target"] for event in heard.of(EventType.METRICS)] == ["large"]
