"""The losses on a GPU against their definition in float64, and Liger's against the same."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from foundry.engine.distill.divergences import divergence_of
from foundry.engine.distill.losses import Head, Scored, TopK, Whole, cross_entropy, match
from foundry.spec.stages import Jsd, Loss
from tests.gpu.conftest import DEVICE, every_dtype, needs_gpu
from tests.unit.engine.test_distill_losses import Tensors, capped, defined, defined_divergence, every_loss, found, top_k

pytestmark = needs_gpu

SIZES = {"sizes that fit no tile": (37, 101, 24, 40), "sizes of a small model": (700, 8192, 256, 320)}
"""T counted tokens, V vocabulary, H and G hidden of student and teacher."""
every_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
LIMITS = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (1e-5, 8e-3)}
"""Largest errors of value and gradients. The gradient of the logits is an operand, so it is rounded once to 8 bits."""


def tensors(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> Tensors:
    """On the GPU in float32, but of values that `dtype` holds; logits have some nats."""
    tokens, vocabulary, hidden, teacher_hidden = sizes
    generator = torch.Generator().manual_seed(7)

    def normal(rows: int, columns: int, size: float) -> Tensor:
        return (size * torch.randn(rows, columns, generator=generator)).to(dtype).float().to(DEVICE)

    student_TH, teacher_TG = normal(tokens, hidden, 1.0), normal(tokens, teacher_hidden, 1.0)
    head_VH, head_VG = normal(vocabulary, hidden, 3 / hidden**0.5), normal(vocabulary, teacher_hidden, 0.2)
    labels_T = torch.randint(0, vocabulary, (tokens,), generator=generator).to(DEVICE)
    return student_TH, head_VH.requires_grad_(), teacher_TG, head_VG, labels_T


def errors(scored: Scored, expected: tuple[Tensor, Tensor, Tensor]) -> list[float]:
    """Of the value and the gradients, each relative to its largest entry."""
    assert scored.head_VH is not None
    return [
        float((mine.double() - theirs).abs().max() / theirs.abs().max())
        for mine, theirs in zip(scored, expected, strict=True)
        if mine is not None
    ]


def assert_within(scored: Scored, expected: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> None:
    value, *gradients = errors(scored, expected)
    assert value <= LIMITS[dtype][0]
    assert max(gradients) <= LIMITS[dtype][1]


@every_loss
@every_dtype
@every_size
@pytest.mark.parametrize("chunk", [16, None], ids=["in chunks", "whole"])
@pytest.mark.parametrize("cap", [None, 5.0], ids=["no cap", "capped"])
def test_match_equals_its_float64_definition(
    loss: Loss, dtype: torch.dtype, sizes: tuple[int, int, int, int], chunk: int | None, cap: float | None
) -> None:
    given = tensors(sizes, dtype)
    scored = found(given, loss, cap, 0.3, temperature=2.0, dtype=dtype, chunk=chunk)
    assert_within(scored, defined(given, loss, 2.0, cap, 0.3), dtype)


@every_loss
@every_dtype
@every_size
def test_top_k_of_all_tokens_equals_the_whole_distribution(
    loss: Loss, dtype: torch.dtype, sizes: tuple[int, int, int, int]
) -> None:
    given = tensors(sizes, dtype)
    student_TH, head_VH, *_ = given
    scored = match(student_TH, Head(head_VH), top_k(given, sizes[1]), divergence_of(loss), dtype=dtype)
    assert_within(scored, defined(given, loss), dtype)


@every_dtype
@every_size
def test_top_k_equals_the_definition_over_its_tokens_and_the_rest(
    dtype: torch.dtype, sizes: tuple[int, int, int, int]
) -> None:
    given = tensors(sizes, dtype)
    student_TH, head_VH, *_ = given
    signal: TopK = top_k(given, 16)
    student, head = student_TH.double().requires_grad_(), head_VH.detach().double().requires_grad_()
    log_TV = torch.log_softmax(student @ head.T, dim=-1)
    rest_T = log_TV.exp().scatter(1, signal.ids_TK, 0.0).sum(dim=1)
    log_q = torch.cat([log_TV.gather(1, signal.ids_TK), rest_T.log()[:, None]], dim=1)
    log_p = torch.cat([signal.log_TK, signal.log_rest_T[:, None]], dim=1).double()
    total = defined_divergence(torch.log_softmax(log_p, dim=-1), log_q, "forward_kl")
    total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and head.grad is not None
    scored = match(student_TH, Head(head_VH), signal, divergence_of("forward_kl"), dtype=dtype, chunk=100)
    assert_within(scored, (total.detach(), student.grad, head.grad), dtype)


@every_dtype
@every_size
def test_cross_entropy_equals_its_float64_definition(dtype: torch.dtype, sizes: tuple[int, int, int, int]) -> None:
    student_TH, head_VH, _, _, labels_T = tensors(sizes, dtype)
    hidden, head = student_TH.double().requires_grad_(), head_VH.detach().double().requires_grad_()
    total = torch.nn.functional.cross_entropy(capped(hidden @ head.T, 5.0), labels_T, reduction="sum")
    total.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and head.grad is not None
    scored = cross_entropy(student_TH, Head(head_VH, 5.0), labels_T, dtype=dtype, chunk=100)
    assert_within(scored, (total.detach(), hidden.grad, head.grad), dtype)


def test_losses_of_no_tokens_are_zero() -> None:
    student_TH, head_VH, teacher_TG, head_VG, labels_T = tensors(SIZES["sizes of a small model"], torch.bfloat16)
    whole, dtype = Whole(teacher_TG[:0], Head(head_VG)), torch.bfloat16
    assert float(cross_entropy(student_TH[:0], Head(head_VH), labels_T[:0], dtype=dtype).total) == 0
    assert float(match(student_TH[:0], Head(head_VH), whole, divergence_of("forward_kl"), dtype=dtype).total) == 0


@every_dtype
@pytest.mark.parametrize("loss", ["forward_kl", Jsd(beta=0.5)], ids=["forward KL", "JSD"])
def test_liger_s_loss_equals_the_same_definition_and_is_no_closer_than_ours(loss: Loss, dtype: torch.dtype) -> None:
    chunked: Any = pytest.importorskip("liger_kernel.chunked_loss")
    given = tensors(SIZES["sizes of a small model"], dtype)
    expected = defined(given, loss)
    student_TH, head_VH, teacher_TG, head_VG, labels_T = (tensor.detach() for tensor in given)
    held = [tensor.to(dtype) for tensor in (student_TH, head_VH, teacher_TG, head_VG)]
    student, head = held[0].requires_grad_(), held[1].requires_grad_()
    beta = loss.beta if isinstance(loss, Jsd) else 0.0
    fused = chunked.LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    total = fused(student, head, held[2], held[3], labels_T) * len(labels_T)
    total.backward()
    assert student.grad is not None and head.grad is not None
    theirs = errors(Scored(total.detach(), student.grad, head.grad), expected)
    ours = errors(found(given, loss, dtype=dtype), expected)
    print(f"\n{loss}, {dtype}: errors of value, d hidden, d head: Liger {theirs}, ours {ours}")
    assert all(math.isfinite(error) and error < (0.1 if dtype == torch.bfloat16 else 1e-3) for error in theirs)
    # Liger rounds logits and log probabilities to the dtype of its operands; a tenth is left to chance.
    assert ours[0] <= 1.1 * max(theirs[0], LIMITS[dtype][0])
    assert all(mine <= 1.1 * max(his, LIMITS[dtype][1]) for mine, his in zip(ours[1:], theirs[1:], strict=True))
