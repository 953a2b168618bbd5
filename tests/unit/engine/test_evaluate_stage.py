"""The evaluate stage: one row for every model of a target, on the same text."""

import json
import shutil
from pathlib import Path

import pytest

from foundry.engine.context import RunContext
from foundry.engine.evaluate.stage import evaluate
from foundry.engine.workspace import read_json, write_json
from foundry.intake.documents import is_held_out
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


def test_evaluate_takes_the_importance_that_the_prune_stage_gathered(
    make_workspace: MakeWorkspace, context: RunContext
) -> None:
    spec, workspace = make_workspace()
    gathered = {"tokens": 7, "scores": {"layers": [0.5]}}
    write_json(workspace.stage("prune") / "importance.json", gathered)
    evaluate(spec, workspace, context)
    assert read_json(workspace.stage("evaluate") / "importance.json") == gathered


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


def test_evaluate_finds_a_planted_leak_and_leaves_it_out(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard, tmp_path: Path
) -> None:
    held = [f"text-{n}" for n in range(400) if is_held_out(f"text-{n}")]
    rows = [{"id": f"text-{n}", "text": " ".join(f"w{n * 40 + i}" for i in range(40))} for n in range(400)]
    copy = next(row["text"] for row in rows if row["id"] == held[2])
    rows.append({"id": "planted", "text": copy})
    assert not is_held_out("planted")
    data = tmp_path / "leaky.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec, workspace = make_workspace("leaky", data=data)
    evaluate(spec, workspace, context)
    (leak,) = read_json(workspace.stage("evaluate") / "leaks.json")
    assert (leak["key"], leak["share"]) == (held[2], 1.0)
    assert workspace.result("evaluate")["leaked_documents"] == 1
    (warning,) = heard.of(EventType.WARNING)
    assert held[2] in warning.message and "left out" in warning.message
    teacher = read_json(workspace.stage("evaluate", "small") / "metrics.json")[0]
    assert teacher["documents"] == workspace.result("evaluate")["documents"] - 1


def test_evaluate_gives_every_figure_its_interval_and_the_difference_to_the_teacher(
    make_workspace: MakeWorkspace, context: RunContext
) -> None:
    spec, workspace = make_workspace()
    evaluate(spec, workspace, context)
    rows = [Metrics.model_validate(row) for row in read_json(workspace.stage("evaluate", "small") / "metrics.json")]
    teacher, pruned = rows
    assert pruned.held_out_loss is not None and teacher.held_out_loss is not None
    assert pruned.loss_over_teacher == pytest.approx(pruned.held_out_loss - teacher.held_out_loss)
    assert teacher.loss_over_teacher is None
    for name, (low, high) in pruned.intervals.items():
        assert low <= getattr(pruned, name) <= high, name
    assert {"held_out_loss", "perplexity", "bits_per_byte", "kl_to_teacher", "loss_over_teacher"} <= set(
        pruned.intervals
    )


def test_evaluate_matches_answers_when_the_data_has_questions(
    make_workspace: MakeWorkspace, context: RunContext, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    pairs = [{"id": f"q{n}", "prompt": f"{tiny.sentence(n, 6)} {n}", "completion": " cat"} for n in range(300)]
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    spec, workspace = make_workspace("pairs", data=data)
    evaluate(spec, workspace, context)
    for row in read_json(workspace.stage("evaluate", "small") / "metrics.json"):
        assert row["answers"] > 5 and 0 <= row["exact_match_ratio"] <= row["f1_ratio"] <= 1
    sample = read_json(workspace.stage("evaluate", "small") / "samples.json")[0]
    assert sample["reference"] == " cat" and list(sample["answers"]) == ["teacher", "pruned"]
