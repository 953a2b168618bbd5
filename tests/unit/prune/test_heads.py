"""Heads in pieces say what whole heads say."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from foundry.engine.distill.divergences import forward_kl
from foundry.engine.distill.losses import Head, Whole, match
from foundry.engine.prune.heads import HeadRows, divergence

_VOCABULARY = 50


def _in_pieces(head_VH: Tensor, rows: int, softcap: float | None) -> HeadRows:
    def pieces() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(head_VH), rows):
            place = slice(start, min(start + rows, len(head_VH)))
            yield place, head_VH[place]

    return HeadRows(len(head_VH), pieces, softcap)


def _random(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["plain", "capped"])
@pytest.mark.parametrize("tokens", [1, 300])
def test_divergence_of_pieces_equals_the_loss_on_whole_heads(tokens: int, softcap: float | None) -> None:
    """300 tokens are several chunks."""
    student_TD, teacher_TH = _random(tokens, 6, seed=0), _random(tokens, 8, seed=1)
    student_VD, teacher_VH = _random(_VOCABULARY, 6, seed=2), _random(_VOCABULARY, 8, seed=3)
    wanted = match(student_TD, Head(student_VD, softcap), Whole(teacher_TH, Head(teacher_VH, softcap)), forward_kl)
    total, gradient_TD = divergence(
        student_TD, _in_pieces(student_VD, 7, softcap), teacher_TH, _in_pieces(teacher_VH, 20, softcap), torch.float32
    )
    assert float(total) == pytest.approx(float(wanted.total), rel=1e-6)
    assert gradient_TD is not None
    torch.testing.assert_close(gradient_TD, wanted.hidden_TH, rtol=1e-5, atol=1e-6)


def test_divergence_does_without_a_gradient_that_nobody_asks_for() -> None:
    hidden_TD, head = _random(4, 6, seed=0), HeadRows.of(_random(_VOCABULARY, 6, seed=1), None)
    with torch.no_grad():
        total, gradient_TD = divergence(hidden_TD, head, hidden_TD, head, torch.float32)
    assert gradient_TD is None
    assert float(total) == pytest.approx(0.0, abs=1e-5)
