"""The local repair takes the steps of an ordinary loop."""

import math

import torch
from torch import nn

from foundry.engine.prune.local import learn


def _layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))


def test_stepping_each_weight_as_its_gradient_comes_equals_one_optimizer_for_all() -> None:
    inputs_TD, goal_TD = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(1))
    found, wanted = _layer(), _layer()

    def error(_: int) -> torch.Tensor:
        return (found(inputs_TD) - goal_TD).square().mean()

    before, after = learn(found, error, 1, hidden=8, epochs=12, seed=0, held=torch.float32, rounded=lambda: None)
    peak = 0.016 / math.sqrt(8)
    optimizer = torch.optim.AdamW(wanted.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * step / 12))
        (wanted(inputs_TD) - goal_TD).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert after < before
    for mine, theirs in zip(found.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.grad is None and not mine.requires_grad
