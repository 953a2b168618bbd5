"""The losses and their gradients against the definition in float64, differentiated by autograd."""

import math

import pytest
import torch
from torch import Tensor

from foundry.engine.distill.losses import Head, Scored, cross_entropy, forward_kl
from foundry.engine.products import inner_dtype

T, V, H, G = 37, 101, 24, 40


def tensors(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden and head of student and teacher, and labels; logits of some nats times `scale`."""
    generator = torch.Generator().manual_seed(7)
    student_TH, teacher_TG = torch.randn(T, H, generator=generator), torch.randn(T, G, generator=generator)
    head_VH, head_VG = torch.randn(V, H, generator=generator), torch.randn(V, G, generator=generator)
    labels_T = torch.randint(0, V, (T,), generator=generator)
    return scale * student_TH, head_VH.requires_grad_(), scale * teacher_TG, head_VG, labels_T


def capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def defined_kl(
    student_TH: Tensor, head_VH: Tensor, teacher_TG: Tensor, head_VG: Tensor, temperature: float, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_t T^2 KL(p || q) by its definition in float64, and its gradients by autograd."""
    student, head = student_TH.detach().double().requires_grad_(), head_VH.detach().double().requires_grad_()
    log_q = torch.log_softmax(capped(student @ head.T, cap) / temperature, dim=-1)
    log_p = torch.log_softmax(capped(teacher_TG.double() @ head_VG.double().T, cap) / temperature, dim=-1)
    total = temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and head.grad is not None
    return total.detach(), student.grad, head.grad


def assert_equal(found: Scored, expected: tuple[Tensor, Tensor, Tensor], error: float) -> None:
    """Relative to the largest entry of each."""
    assert found.head_VH is not None
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None
        assert (mine.double() - theirs).abs().max() <= error * theirs.abs().max()


@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.7])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 10, T, 1000])
def test_forward_kl_equals_its_float64_definition_in_value_and_gradients(
    temperature: float, cap: float | None, chunk: int
) -> None:
    student_TH, head_VH, teacher_TG, head_VG, _ = tensors()
    found = forward_kl(
        student_TH, Head(head_VH, cap), teacher_TG, Head(head_VG, cap), temperature=temperature, chunk=chunk
    )
    assert_equal(found, defined_kl(student_TH, head_VH, teacher_TG, head_VG, temperature, cap), error=2e-6)


def test_forward_kl_stays_exact_when_logits_are_large() -> None:
    student_TH, head_VH, teacher_TG, head_VG, _ = tensors(scale=30.0)
    found = forward_kl(student_TH, Head(head_VH), teacher_TG, Head(head_VG))
    # Logits of some hundred nats have float32 steps of 3e-5, which is then the error of a probability.
    assert_equal(found, defined_kl(student_TH, head_VH, teacher_TG, head_VG, 1.0, None), error=5e-5)


def test_forward_kl_is_zero_when_student_and_teacher_agree() -> None:
    student_TH, head_VH, *_ = tensors()
    found = forward_kl(student_TH, Head(head_VH), student_TH, Head(head_VH.detach()))
    assert abs(float(found.total)) < 1e-4 * T
    assert found.hidden_TH.abs().max() < 1e-6


def test_forward_kl_never_rounds_logits_when_products_run_in_bfloat16() -> None:
    student_TH, head_VH, teacher_TG, head_VG, _ = tensors()
    exact = [t.detach() for t in (student_TH, head_VH, teacher_TG, head_VG)]
    rounded = [t.bfloat16().float() for t in exact]
    with inner_dtype(torch.bfloat16, torch.device("cpu")):
        found = forward_kl(student_TH, Head(head_VH), teacher_TG, Head(head_VG), dtype=torch.bfloat16)
    # A CPU without bfloat16 instructions does not round at all.
    total, gradient_TH, gradient_VH = min(
        (defined_kl(*operands, 1.0, None) for operands in (rounded, exact)),
        key=lambda defined: abs(float(defined[0] - found.total)),
    )
    assert float(found.total) == pytest.approx(float(total), rel=2e-6)
    # The gradient of the logits is an operand of the next product, so it is rounded, once, to 8 bits.
    assert found.head_VH is not None
    assert (found.hidden_TH - gradient_TH).abs().max() <= 4e-3 * gradient_TH.abs().max()
    assert (found.head_VH - gradient_VH).abs().max() <= 4e-3 * gradient_VH.abs().max()


def test_inner_dtype_gives_back_what_it_found() -> None:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), inner_dtype(torch.bfloat16, torch.device("cpu")):
        assert matmul.fp32_precision == "bf16"
        _ = 1 / 0
    assert matmul.fp32_precision == before


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_cross_entropy_equals_its_float64_definition_in_value_and_gradients(cap: float | None, chunk: int) -> None:
    student_TH, head_VH, _, _, labels_T = tensors()
    hidden, head = student_TH.double().requires_grad_(), head_VH.detach().double().requires_grad_()
    total = torch.nn.functional.cross_entropy(capped(hidden @ head.T, cap), labels_T, reduction="sum")
    total.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and head.grad is not None
    found = cross_entropy(student_TH, Head(head_VH, cap), labels_T, chunk=chunk)
    assert_equal(found, (total.detach(), hidden.grad, head.grad), error=2e-6)


def test_losses_scale_values_and_gradients_alike() -> None:
    student_TH, head_VH, teacher_TG, head_VG, labels_T = tensors()
    for once, half in (
        (forward_kl(student_TH, Head(head_VH), teacher_TG, Head(head_VG)),
         forward_kl(student_TH, Head(head_VH), teacher_TG, Head(head_VG), scale=0.5)),
        (cross_entropy(student_TH, Head(head_VH), labels_T),
         cross_entropy(student_TH, Head(head_VH), labels_T, scale=0.5)),
    ):  # fmt: skip
        for whole, part in zip(once, half, strict=True):
            assert whole is not None and part is not None
            torch.testing.assert_close(part, whole / 2, rtol=1e-5, atol=1e-6)


def test_losses_make_no_head_gradient_when_the_head_is_frozen() -> None:
    student_TH, head_VH, teacher_TG, head_VG, labels_T = tensors()
    frozen = Head(head_VH.detach())
    assert forward_kl(student_TH, frozen, teacher_TG, Head(head_VG)).head_VH is None
    assert cross_entropy(student_TH, frozen, labels_T).head_VH is None


def test_losses_of_no_tokens_are_zero() -> None:
    student_TH, head_VH, teacher_TG, head_VG, labels_T = tensors()
    none = slice(0, 0)
    assert float(cross_entropy(student_TH[none], Head(head_VH), labels_T[none]).total) == 0
    assert math.isclose(float(forward_kl(student_TH[none], Head(head_VH), teacher_TG[none], Head(head_VG)).total), 0)
