"""The local repair takes the steps of an ordinary loop."""

import math

import torch
from torch import nn

from foundry.engine.prune.local import learn, relative_error


def _layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))


def test_stepping_each_weight_as_its_gradient_comes_equals_one_optimizer_for_all() -> None:
    inputs_TD, goal_TD = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(1))
    found, wanted = _layer(), _layer()

    def error(_: int) -> torch.Tensor:
        return (found(inputs_TD) - goal_TD).square().mean()

    before, after = learn(found, error, 1, hidden=8, epochs=12, seed=0, held=torch.float32, rounded=lambda: None)
    peak = 0.03 / math.sqrt(8)
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


def test_a_position_counts_the_same_however_long_its_stream_is() -> None:
    generator = torch.Generator().manual_seed(2)
    goal_BSD = torch.randn(2, 6, 8, generator=generator)
    output_BSD = goal_BSD + 0.1 * torch.randn(2, 6, 8, generator=generator)
    long_S1 = torch.ones(6, 1)
    long_S1[0] = 1000
    found = relative_error(output_BSD * long_S1, goal_BSD * long_S1)
    torch.testing.assert_close(found, relative_error(output_BSD, goal_BSD))
    assert torch.isfinite(relative_error(output_BSD, goal_BSD * (torch.arange(6) > 0)[:, None]))
