"""Optimizers, averages, budgets and early ends: each resumes bit for bit, and does what its name says."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry.engine.context import RunContext, Stopped
from foundry.engine.distill import trainer
from foundry.engine.distill.learner import Learner, Lesson
from foundry.engine.distill.logbook import Logbook
from foundry.engine.distill.losses import Head, Scored
from foundry.engine.distill.memory import checkpoint_activations
from foundry.engine.distill.objectives import Goal, match_teacher
from foundry.engine.distill.optimizers import _ExactMuon
from foundry.engine.distill.trainer import Objective, summary, train
from foundry.engine.evaluate.compare import compare
from foundry.engine.packed import Batch
from foundry.engine.workspace import Workspace
from foundry.errors import Diverged
from foundry.spec.lifecycle import EventType
from tests import tiny
from tests.families import genuine
from tests.unit.engine.conftest import Heard
from tests.unit.engine.test_distill_trainer import assert_same_bits, new_training, texts, weights_of


def learner_with(context: RunContext, *, checkpointing: bool = False, **options: Any) -> Learner:
    model = tiny.new_model(ffn=32, seed=32)
    if checkpointing:
        checkpoint_activations(model)
    return Learner("student", model, context.dtype, **options)


@pytest.fixture
def objective(context: RunContext) -> Objective:
    return match_teacher(tiny.new_model(seed=1), Goal(), context)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that goes on by a second each time it is read."""
    ticks = count()
    monkeypatch.setattr(trainer.time, "monotonic", lambda: float(next(ticks)))
    yield


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(
    ("options", "changes", "steps"),
    [
        pytest.param({"optimizer": "muon", "checkpointing": True}, {}, 16, id="muon and gradient checkpointing"),
        pytest.param({"ema_decay": 0.9, "keeps_best": True}, {"patience_looks": 2}, 16, id="average and patience"),
        pytest.param({}, {"time_budget_s": 33.0}, 13, id="time budget"),
    ],
)
def test_train_gives_the_same_bits_when_stopped_and_resumed_with(
    options: dict[str, Any], changes: dict[str, Any], steps: int, context: RunContext, heard: Heard, tmp_path: Path,
    objective: Objective,
) -> None:  # fmt: skip
    training = replace(new_training(objective, steps=16), **changes)
    whole = learner_with(context, **options)
    history = train([whole], training, Workspace(tmp_path / "whole"), context)["student"]
    heard.events.clear()
    heard.stop_after = 11
    with pytest.raises(Stopped):
        train([learner_with(context, **options)], training, Workspace(tmp_path / "halted"), context)
    heard.stop_after = None
    resumed = learner_with(context, **options)
    again = train([resumed], training, Workspace(tmp_path / "halted"), context)["student"]
    assert_same_bits(weights_of(whole), weights_of(resumed))
    assert history == again
    assert history["steps"] == steps


@pytest.mark.usefixtures("ticking")
def test_time_budget_shortens_the_run_with_its_whole_schedule(
    context: RunContext, heard: Heard, tmp_path: Path, objective: Objective
) -> None:
    training = replace(new_training(objective, steps=40), time_budget_s=50.0)
    history = train([learner_with(context)], training, Workspace(tmp_path), context)["student"]
    assert history["ended_by"] == "time" and 10 < history["steps"] < 30
    rates = [row["learning_rate"] for row in history["rows"] if "loss" in row]
    assert rates[-1] < 0.1 * max(rates)
    assert any("steps instead of 40 fit into 50 seconds" in event.message for event in heard.of(EventType.LOG))


def test_patience_ends_the_run_and_ships_the_best_weights(
    context: RunContext, tmp_path: Path, objective: Objective
) -> None:
    """Against a rising loss: the rate is so high that the student only gets worse after its first looks."""
    training = replace(new_training(objective, steps=60), patience_looks=3)
    training = replace(training, schedule=replace(training.schedule, peak_rate=0.3))
    learner = learner_with(context, keeps_best=True)
    history = train([learner], training, Workspace(tmp_path), context)["student"]
    looks = {row["step"]: row["held_out_loss"] for row in history["rows"] if "held_out_loss" in row}
    assert history["ended_by"] == "patience" and history["steps"] == history["shipped_step"] + 3 * 4 < 60
    assert looks[history["shipped_step"]] == min(looks.values()) == summary(history)["held_out_loss_after"]
    shipped = compare(learner.model.eval(), None, training.held_out, context).held_out_loss
    assert shipped == pytest.approx(min(looks.values()), rel=1e-6)


def test_average_is_measured_and_shipped_and_learning_goes_on_beside_it(context: RunContext) -> None:
    learner = learner_with(context, ema_decay=0.5)
    name, weight = next(iter(learner.model.named_parameters()))
    expected, seen = weight.detach().clone(), []
    for step in range(4):
        weight.grad = torch.ones_like(weight)
        learner.update(0.01)
        kept = min(0.5, (2 + step) / (11 + step))
        expected = kept * expected + (1 - kept) * weight.detach()
        with learner.as_shipped():
            torch.testing.assert_close(weight.detach(), expected)
        seen.append(weight.detach().clone())
    assert not torch.equal(seen[-1], expected)
    learner.settle()
    torch.testing.assert_close(weight.detach(), expected)
    assert f"average.{name}" in learner.state()


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(context: RunContext) -> None:
    learner = learner_with(context, optimizer="muon")
    decayed_by = {id(p): group for group in learner._update.groups for p in group["params"]}
    for name, parameter in learner.model.named_parameters():
        group = decayed_by[id(parameter)]
        assert ("ns_steps" in group) == ("proj" in name), name
    assert len(decayed_by) == len(list(learner.model.parameters()))


def test_muon_in_float32_makes_the_updates_of_pytorchs_up_to_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 48), (48, 16), (24, 24)):
        start, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
        found = []
        for kind in (torch.optim.Muon, _ExactMuon):
            parameter = torch.nn.Parameter(start.clone())
            optimizer = kind([parameter], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
            for step in range(3):
                parameter.grad = gradient * (step + 1)
                optimizer.step()
            found.append(parameter.detach() - start)
        assert (found[0] - found[1]).norm() <= 0.03 * found[0].norm()


def test_muon_leaves_experts_in_one_tensor_to_adamw(context: RunContext) -> None:
    learner = Learner("moe", genuine("mixtral"), context.dtype, optimizer="muon")
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.update(1e-3)
    assert any(p.ndim == 3 for group in learner._update.groups if "betas" in group for p in group["params"])


@pytest.mark.parametrize("loss", [2.0, 9.0])
def test_logbook_calls_a_run_diverged_after_five_steps_far_above_its_lowest_loss(loss: float) -> None:
    schedule = new_training(lambda batch, scale: None).schedule  # type: ignore[arg-type,return-value]
    log = Logbook(["a", "b"], {})
    for step in range(1, 11):
        log.add_step(schedule, step, [2.0, 1.0])
    assert log.is_sound and log.diverged is None
    for step in range(11, 16):
        assert log.diverged is None
        log.add_step(schedule, step, [2.0, loss])
    assert log.diverged == ("b" if loss == 9.0 else None)
    assert log.is_sound == (loss == 2.0)


def test_train_stops_when_the_loss_explodes_and_keeps_the_last_good_checkpoint(
    context: RunContext, tmp_path: Path, objective: Objective
) -> None:
    calls = count()

    def exploding(batch: Batch, scale: float) -> Lesson:
        lesson, worse = objective(batch, scale), next(calls) >= 11

        def with_excess(hidden_TH: torch.Tensor, head: Head) -> Scored:
            scored = lesson.score(hidden_TH, head)
            return scored._replace(total=scored.total + 50) if worse else scored

        return lesson._replace(score=with_excess)

    training = replace(new_training(exploding, steps=40), checkpoint_steps=2)
    workspace = Workspace(tmp_path)
    with pytest.raises(Diverged, match=r"far above the .* for 'student' at step 16 .* checkpoint of step 10 is kept"):
        train([learner_with(context)], training, workspace, context)
    assert [step for step, _ in workspace.checkpoints("distill")] == [10, 8]


def test_progress_tells_the_memory_that_the_run_holds(
    context: RunContext, heard: Heard, tmp_path: Path, objective: Objective
) -> None:
    train([learner_with(context)], new_training(objective, steps=2), Workspace(tmp_path), context)
    assert all(event.data["memory_bytes"] > 2**20 for event in heard.of(EventType.PROGRESS))


@pytest.mark.parametrize("family", ["granite", "gemma2"])
def test_a_copy_of_the_teacher_has_nothing_to_learn_where_the_family_scales_or_caps_its_logits(
    family: str, context: RunContext
) -> None:
    text, _ = texts()
    batch = text.batch(slice(0, 2))
    teacher, copy, other = (genuine(family, seed=seed) for seed in (1, 1, 2))
    score = match_teacher(teacher, Goal(temperature=2.0), context)(batch, 1.0)
    assert Learner("copy", copy, context.dtype).accumulate(batch, score) == pytest.approx(0.0, abs=1e-2)
    found = Learner("other", other, context.dtype).accumulate(batch, score)
    logits = [model(**batch.model_inputs()).logits[batch.targets_BS].double() / 2 for model in (teacher, other)]
    log_p, log_q = (torch.log_softmax(one.detach(), dim=-1) for one in logits)
    assert found == pytest.approx(4 * float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-4)
    assert math.isfinite(found)
