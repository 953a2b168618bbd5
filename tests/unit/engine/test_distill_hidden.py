"""Losses on hidden states against their definition in float64, and what a learner does with them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foundry.engine.context import RunContext, Stopped
from foundry.engine.distill.hidden import HiddenMatch, Pairs, cosine, mse
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.objectives import Goal, match_teacher
from foundry.engine.distill.stage import distill
from foundry.engine.distill.trainer import train
from foundry.engine.workspace import Workspace
from foundry.spec.stages import HiddenLoss
from tests import tiny
from tests.unit.engine.conftest import FFN, Heard, MakeWorkspace
from tests.unit.engine.test_distill_trainer import assert_same_bits, new_training, texts, weights_of

T, G = 11, 24
DEFINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda x, y: (1 - torch.cosine_similarity(x, y, dim=1)).sum(),
    "mse": lambda x, y: (x - y).square().mean(dim=1).sum(),
}


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_distance_equals_its_float64_definition_in_value_and_gradient(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(T, G, generator=generator), 3 * torch.randn(T, G, generator=generator)
    exact = x.double().requires_grad_()
    total = DEFINED[kind](exact, y.double())
    total.backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None
    found, gradient_TG = {"cosine": cosine, "mse": mse}[kind](x, y)
    assert float(found) == pytest.approx(float(total.detach()), rel=1e-6)
    assert (gradient_TG - exact.grad).abs().max() <= 2e-6 * exact.grad.abs().max()


@pytest.mark.parametrize(
    ("wanted", "kept", "layers"),
    [
        pytest.param(4, (0, 3, 4, 7), ((0, 2), (1, 3), (2, 6), (3, 7)), id="all of few"),
        pytest.param(2, (0, 3, 4, 7), ((1, 3), (3, 7)), id="evenly spaced"),
        pytest.param(1, (0, 2), ((1, 7),), id="the last layer answers to the last"),
    ],
)
def test_pairs_put_a_layer_beside_the_teachers_last_before_the_next_kept_one(
    wanted: int, kept: tuple[int, ...], layers: tuple[tuple[int, int], ...]
) -> None:
    assert Pairs.of(HiddenLoss(layers=wanted), kept, 8, 32).layers == layers


def hidden_learner(context: RunContext, kind: str, hidden: int, weight: float = 0.0) -> Learner:
    pairs = Pairs.of(HiddenLoss(kind=kind, layers=2), (0, 1), 2, 32)  # type: ignore[arg-type]
    match = HiddenMatch(pairs, hidden, seed=0)
    match.weight.fill_(weight)
    return Learner("student", tiny.new_model(hidden=hidden, seed=5), context.dtype, hidden=match)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
@pytest.mark.parametrize("hidden", [32, 16])
def test_gradients_equal_autograd_of_the_weighted_sum_over_two_micro_batches(
    kind: str, hidden: int, context: RunContext
) -> None:
    text, _ = texts()
    teacher, weight, counted = tiny.new_model(seed=1), 0.7, int(text.targets_NS[:4].sum())
    objective = match_teacher(teacher, Goal(), context, layers=[0, 1])
    learner = hidden_learner(context, kind, hidden, weight)
    losses = [
        learner.accumulate(batch, objective(batch, 1 / counted))
        for batch in (text.batch(slice(0, 1)), text.batch(slice(1, 4)))
    ]
    reference, batch = tiny.new_model(hidden=hidden, seed=5), text.batch(slice(0, 4))
    projection = HiddenMatch(learner._hidden.pairs, hidden, seed=0).projection  # type: ignore[union-attr]
    mine = reference(**batch.model_inputs(), output_hidden_states=True)
    theirs = teacher(**batch.model_inputs(), output_hidden_states=True)
    log_q, log_p = (torch.log_softmax(out.logits[batch.targets_BS], dim=-1) for out in (mine, theirs))
    kl = (log_p.exp() * (log_p - log_q)).sum() / counted
    # transformers' last state is normalised, so the last layer's output is taken by a hook.
    total, seen = kl, {}
    for name, model in (("mine", reference), ("theirs", teacher)):
        hook = model.model.layers[1].register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        model(**batch.model_inputs())
        hook.remove()
    for x, y in ((mine.hidden_states[1], theirs.hidden_states[1]), (seen["mine"], seen["theirs"])):
        x_TH, y_TG = x[batch.targets_BS], y[batch.targets_BS].detach()
        total = total + weight * DEFINED[kind](x_TH if projection is None else x_TH @ projection.T, y_TG) / counted / 2
    total.backward()
    assert sum(losses) == pytest.approx(float(kl.detach()), rel=1e-4)
    for found, expected in zip(learner.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)
    if projection is not None:
        torch.testing.assert_close(learner._trained["hidden.projection"].grad, projection.grad, rtol=1e-3, atol=1e-5)


def test_train_with_hidden_states_resumes_bit_for_bit_and_weighs_them_like_the_logit_loss(
    context: RunContext, heard: Heard, tmp_path: Path
) -> None:
    objective = match_teacher(tiny.new_model(seed=1), Goal(), context, layers=[0, 1])
    training = new_training(objective, steps=8)
    whole = hidden_learner(context, "cosine", 16)
    train([whole], training, Workspace(tmp_path / "whole"), context)
    assert float(whole.state()["hidden.weight"]) > 0
    heard.events.clear()
    heard.stop_after = 6
    with pytest.raises(Stopped):
        train([hidden_learner(context, "cosine", 16)], training, Workspace(tmp_path / "halted"), context)
    heard.stop_after = None
    resumed = hidden_learner(context, "cosine", 16)
    train([resumed], training, Workspace(tmp_path / "halted"), context)
    assert_same_bits(weights_of(whole), weights_of(resumed))


def test_distill_matches_hidden_states_and_ships_no_projection(
    make_workspace: MakeWorkspace, context: RunContext
) -> None:
    config = {"tokens": 1024, "batch_tokens": 512, "hidden": {"kind": "mse"}, "gradient_checkpointing": True}
    spec, workspace = make_workspace(distill=config)
    distill(spec, workspace, context)
    assert all((workspace.stage("distill", target) / "model" / "model.safetensors").exists() for target in FFN)
