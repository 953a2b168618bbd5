"""Models held in bfloat16 learn through float32 masters, beside them or in the machine's memory."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from foundry.engine.context import RunContext, Stopped
from foundry.engine.distill import host
from foundry.engine.distill.host import HostAdamW
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.masters import Masters
from foundry.engine.distill.memory import Room, fits_in_shards, moments_on_host
from foundry.engine.distill.objectives import predict_text
from foundry.engine.distill.trainer import train
from foundry.engine.evaluate.compare import compare
from foundry.engine.workspace import Workspace
from foundry.errors import OutOfMemory
from tests import tiny
from tests.unit.engine.conftest import Heard
from tests.unit.engine.test_distill_trainer import assert_same_bits, new_training, texts, weights_of

HALF = torch.bfloat16


@pytest.fixture
def half(context: RunContext) -> RunContext:
    """What a run on an accelerator has: weights, activations and products in bfloat16."""
    return replace(context, dtype=HALF)


def new_learner(**options: Any) -> Learner:
    return Learner("student", tiny.new_model(seed=3, **_shape(options)).to(HALF), HALF, **options)


def _shape(options: dict[str, Any]) -> dict[str, Any]:
    return {"tied": options.pop("tied")} if "tied" in options else {}


def test_masters_gather_updates_that_bfloat16_would_lose(half: RunContext) -> None:
    learner, whole = new_learner(), Learner("student", tiny.new_model(seed=3).to(HALF).float(), torch.float32)
    before = {name: weight.clone() for name, weight in learner.model.state_dict().items()}
    start = weights_of(learner)
    for number in range(8):
        batch = texts()[0].batch([number, number + 1])
        for one, context in ((learner, half), (whole, replace(half, dtype=torch.float32))):
            one.accumulate(batch, predict_text(context)(batch, 1 / 60))
            one.update(1e-5)
        if number == 0:
            first = {name: weight.clone() for name, weight in learner.model.state_dict().items()}
    name = "model.layers.0.mlp.up_proj.weight"
    # One update is below the gap between neighbours nearly everywhere; eight are not.
    moved = [(weights[name] != before[name]).float().mean() for weights in (first, learner.model.state_dict())]
    assert moved[1] > 3 * moved[0]
    mine, theirs = (weights_of(one)[f"weight.{name}"] - start[f"weight.{name}"] for one in (learner, whole))
    assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.98
    for name, weight in learner.model.state_dict().items():
        assert torch.equal(weight, weights_of(learner)[f"weight.{name}"].to(HALF))


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"keeps_best": True}, {"tied": True}])
def test_a_resumed_run_with_masters_gives_the_same_bits(
    half: RunContext, heard: Heard, tmp_path: Path, options: dict[str, Any], *, on_host: bool
) -> None:
    training = new_training(predict_text(half))
    whole = new_learner(on_host=on_host, **options)
    train([whole], training, Workspace(tmp_path / "whole"), half)
    interrupted = Workspace(tmp_path / "interrupted")
    heard.events.clear()
    heard.stop_after = 7
    with pytest.raises(Stopped):
        train([new_learner(on_host=on_host, **options)], training, interrupted, half)
    heard.stop_after = None
    resumed = new_learner(on_host=on_host, **options)
    train([resumed], training, interrupted, half)
    assert_same_bits(weights_of(whole), weights_of(resumed))
    assert_same_bits(whole.model.state_dict(), resumed.model.state_dict())


def test_updates_on_the_host_are_those_beside_the_model(half: RunContext) -> None:
    beside, far = new_learner(ema_decay=0.9), new_learner(ema_decay=0.9, on_host=True)
    for number in range(4):
        batch = texts()[0].batch([number, number + 1])
        norms = []
        for learner in (beside, far):
            learner.accumulate(batch, predict_text(half)(batch, 1 / 30))
            learner.accumulate(batch, predict_text(half)(batch, 1 / 30))
            norms.append(learner.update(1e-3))
        assert norms[0] == norms[1] > 1  # clipped alike
    assert_same_bits(weights_of(beside), weights_of(far))
    held_out = texts()[1]
    losses = []
    for learner in (beside, far):
        with learner.as_shipped():
            losses.append(compare(learner.model, None, held_out, half).held_out_loss)
        losses.append(compare(learner.model, None, held_out, half).held_out_loss)
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(host, "_PIECE", 64)
    yield


@pytest.mark.usefixtures("small_pieces")
def test_host_adamw_updates_piece_by_piece_what_adamw_updates_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    named = {
        name: nn.Parameter(torch.randn(size, generator=generator).to(HALF))
        for name, size in (("matrix", (13, 20)), ("norm", (20,)), ("still", (3,)))
    }
    masters = Masters(named, on_host=True)
    near = {name: nn.Parameter(p.detach().float()) for name, p in named.items()}
    groups = [[weights["matrix"]] for weights in (masters.weights, near)]
    rest = [[weights["norm"], weights["still"]] for weights in (masters.weights, near)]
    both = [
        [{"params": one, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}]
        for one, other in zip(groups, rest, strict=True)
    ]
    far_optimizer = HostAdamW(both[0], (0.9, 0.95), masters)
    optimizer = AdamW(both[1], betas=(0.9, 0.95), fused=True)
    for _ in range(3):
        for name in ("matrix", "norm"):
            gradient = torch.randn(named[name].shape, generator=generator)
            masters.add(name, gradient.clone())
            near[name].grad = gradient
        far_optimizer.step()
        optimizer.step()
        masters.forget()
    for name, parameter in named.items():
        torch.testing.assert_close(masters.weights[name], near[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(parameter, masters.weights[name].to(HALF))
    assert not far_optimizer.state[masters.weights["still"]]


@pytest.mark.parametrize(
    ("parameters", "loaded", "expected"),
    [(1.3e9, False, False), (2.0e9, False, False), (8.41e9, False, True), (8.41e9, True, True)],
)
def test_moments_lie_on_the_host_where_the_accelerator_has_no_room(
    parameters: float, expected: bool, *, loaded: bool
) -> None:
    """80 GB of which a teacher of 12.2e9 parameters takes 24.5, and 137 GB of the machine's memory."""
    held = 24.5e9 + (2 * parameters if loaded else 0)
    room = Room(accelerator=int(85.0e9), held=int(held), host=int(137e9))
    assert moments_on_host(int(parameters), 0, room, loaded=loaded) == expected


@pytest.mark.parametrize(
    ("processes", "state", "expected"), [(2, 8, False), (2, 4, True), (4, 8, True), (4, 16, True), (3, 16, False)]
)
def test_shards_are_learned_in_where_they_fit(processes: int, state: int, *, expected: bool) -> None:
    """Of 12.2e9 and 8.41e9 parameters in 85 GB each: halves take 79.5 and what is whole at times 6.4."""
    assert fits_in_shards(int(12.2e9), int(8.41e9), 131_072 * 4096, state, int(85e9), processes) == expected


@pytest.mark.parametrize(("accelerator", "machine", "copies"), [(40e9, 500e9, 0), (85e9, 100e9, 0), (85e9, 137e9, 2)])
def test_what_fits_nowhere_is_refused_with_both_numbers(accelerator: float, machine: float, copies: int) -> None:
    room = Room(accelerator=int(accelerator), held=int(24.5e9), host=int(machine))
    with pytest.raises(OutOfMemory, match=r"takes 50\.5 GB of the accelerator .* choose smaller or fewer targets"):
        moments_on_host(int(8.41e9), copies, room)


def test_a_learner_that_nobody_needs_is_freed_with_its_masters() -> None:
    learner = new_learner()
    kept = [weakref.ref(tensor) for tensor in (*learner.model.parameters(), *learner.state().values())]
    del learner
    gc.collect()
    assert [one for one in kept if one() is not None] == []


def test_a_backward_pass_that_failed_leaves_no_gradient_behind(
    half: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, batch = new_learner(), texts()[0].batch([0, 1])
    learner.accumulate(batch, predict_text(half)(batch, 1 / 30))
    once = {name: gradient.clone() for name, gradient in learner._masters.gradients.items()}
    learner.forget()

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Masters, "add", no_room)
        with pytest.raises(torch.OutOfMemoryError):
            learner.accumulate(batch, predict_text(half)(batch, 1 / 30))
    learner.forget()
    learner.accumulate(batch, predict_text(half)(batch, 1 / 30))
    assert_same_bits(learner._masters.gradients, once)
