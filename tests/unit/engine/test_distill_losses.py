"""The losses and their gradients against the definition in float64, differentiated by autograd."""

import math

import pytest
import torch
from torch import Tensor

from foundry.engine.distill.divergences import Divergence, divergence_of
from foundry.engine.distill.losses import HardLabels, Head, Scored, TopK, Whole, cross_entropy, match
from foundry.engine.products import inner_dtype, product, softmax
from foundry.spec.stages import Jsd, Loss

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


LOSSES: dict[str, Loss] = {
    "forward KL": "forward_kl", "reverse KL": "reverse_kl", "JSD": Jsd(), "JSD near the forward KL": Jsd(beta=0.1),
}  # fmt: skip
FORWARD_KL: Divergence = divergence_of("forward_kl")
every_loss = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in LOSSES.items()])


def defined_divergence(log_p: Tensor, log_q: Tensor, loss: Loss) -> Tensor:
    """By its definition, summed over tokens."""
    p, q = log_p.exp(), log_q.exp()
    if loss == "forward_kl":
        return (p * (log_p - log_q)).sum()
    if loss == "reverse_kl":
        return (q * (log_q - log_p)).sum()
    assert isinstance(loss, Jsd)
    log_m = torch.logaddexp(log_p + math.log(loss.beta), log_q + math.log(1 - loss.beta))
    return loss.beta * (p * (log_p - log_m)).sum() + (1 - loss.beta) * (q * (log_q - log_m)).sum()


Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def defined(
    given: Tensors, loss: Loss = "forward_kl", temperature: float = 1.0, cap: float | None = None, hard: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_t T^2 divergence + hard x cross entropy in float64, and its gradients by autograd."""
    student_TH, head_VH, teacher_TG, head_VG, labels_T = given
    student, head = student_TH.detach().double().requires_grad_(), head_VH.detach().double().requires_grad_()
    logits = capped(student @ head.T, cap)
    log_q = torch.log_softmax(logits / temperature, dim=-1)
    log_p = torch.log_softmax(capped(teacher_TG.double() @ head_VG.detach().double().T, cap) / temperature, dim=-1)
    total = temperature**2 * defined_divergence(log_p, log_q, loss)
    total = total + hard * torch.nn.functional.cross_entropy(logits, labels_T, reduction="sum")
    total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and head.grad is not None
    return total.detach(), student.grad, head.grad


def found(
    given: Tensors, loss: Loss = "forward_kl", cap: float | None = None, hard: float = 0.0, **more: object
) -> Scored:
    student_TH, head_VH, teacher_TG, head_VG, labels_T = given
    return match(
        student_TH, Head(head_VH, cap), Whole(teacher_TG, Head(head_VG, cap)), divergence_of(loss),
        hard=HardLabels(labels_T, hard) if hard else None, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def top_k(given: Tensors, k: int, temperature: float = 1.0) -> TopK:
    _, _, teacher_TG, head_VG, _ = given
    log_TV = torch.log_softmax(teacher_TG.double() @ head_VG.double().T / temperature, dim=-1)
    log_TK, ids_TK = log_TV.topk(k, dim=-1)
    rest_T = log_TV.exp().scatter(1, ids_TK, 0.0).sum(dim=1)
    return TopK(ids_TK, log_TK.float(), rest_T.log().float())


def assert_equal(scored: Scored, expected: tuple[Tensor, Tensor, Tensor], error: float, least: float = 0.0) -> None:
    """Relative to the largest entry of each, or to `least` where that is larger."""
    assert scored.head_VH is not None
    for mine, theirs in zip(scored, expected, strict=True):
        assert mine is not None
        assert (mine.double() - theirs).abs().max() <= error * theirs.abs().max().clamp_min(least)


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize(("chunk", "hard"), [(1, 0.0), (10, 0.3), (T, 0.0), (1000, 2.0)])
def test_match_equals_its_float64_definition_in_value_and_gradients(
    loss: Loss, temperature: float, cap: float | None, chunk: int, hard: float
) -> None:
    given = tensors()
    scored = found(given, loss, cap, hard, temperature=temperature, chunk=chunk)
    assert_equal(scored, defined(given, loss, temperature, cap, hard), error=4e-6)


@every_loss
def test_match_stays_exact_when_logits_are_large(loss: Loss) -> None:
    given = tensors(scale=30.0)
    # Logits of some hundred nats have float32 steps of 3e-5, which is then the error of a probability. The JSD of
    # distributions that share nothing is flat: its gradients are 0 but for that.
    assert_equal(found(given, loss), defined(given, loss), error=5e-5, least=1.0)


@every_loss
def test_match_is_zero_when_student_and_teacher_agree(loss: Loss) -> None:
    student_TH, head_VH, _, _, labels_T = tensors()
    scored = found((student_TH, head_VH, student_TH, head_VH.detach(), labels_T), loss)
    assert abs(float(scored.total)) < 1e-4 * T
    assert scored.hidden_TH.abs().max() < 1e-5


def test_jsd_goes_to_both_kls_at_the_ends_of_beta() -> None:
    given = tensors(scale=0.2)
    for beta, end in ((1e-4, "forward_kl"), (1 - 1e-4, "reverse_kl")):
        share = min(beta, 1 - beta)
        scored = found(given, Jsd(beta=beta), scale=1 / share)
        assert float(scored.total) == pytest.approx(float(found(given, end).total), rel=0.01)  # type: ignore[arg-type]


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_k_of_all_tokens_equals_the_whole_distribution(loss: Loss, temperature: float) -> None:
    given = tensors()
    student_TH, head_VH, *_ = given
    scored = match(
        student_TH, Head(head_VH), top_k(given, V, temperature), divergence_of(loss), temperature=temperature, chunk=10
    )
    assert_equal(scored, defined(given, loss, temperature), error=4e-6)


@every_loss
@pytest.mark.parametrize("k", [1, 5, 60])
def test_top_k_equals_the_definition_over_its_tokens_and_the_rest(loss: Loss, k: int) -> None:
    given = tensors()
    student_TH, head_VH, *_ = given
    signal = top_k(given, k)
    student, head = student_TH.double().requires_grad_(), head_VH.detach().double().requires_grad_()
    log_TV = torch.log_softmax(student @ head.T, dim=-1)
    rest_T = log_TV.exp().scatter(1, signal.ids_TK, 0.0).sum(dim=1)
    log_q = torch.cat([log_TV.gather(1, signal.ids_TK), rest_T.log()[:, None]], dim=1)
    log_p = torch.cat([signal.log_TK, signal.log_rest_T[:, None]], dim=1).double()
    total = defined_divergence(torch.log_softmax(log_p, dim=-1), log_q, loss)
    total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and head.grad is not None
    scored = match(student_TH, Head(head_VH), signal, divergence_of(loss), chunk=10)
    # A log of a nearly empty rest is long, and the reverse KL multiplies its rounding by the student's probability.
    assert_equal(scored, (total.detach(), student.grad, head.grad), error=1e-4)


def test_match_never_rounds_logits_when_products_run_in_bfloat16() -> None:
    given = tensors()
    exact: Tensors = tuple(t.detach() for t in given)  # type: ignore[assignment]
    rounded: Tensors = tuple(t.bfloat16().float() if t.is_floating_point() else t for t in exact)  # type: ignore[assignment]
    with inner_dtype(torch.bfloat16, torch.device("cpu")):
        scored = found(given, dtype=torch.bfloat16)
    # A CPU without bfloat16 instructions does not round at all.
    total, gradient_TH, gradient_VH = min(
        (defined(operands) for operands in (rounded, exact)), key=lambda one: abs(float(one[0] - scored.total))
    )
    assert float(scored.total) == pytest.approx(float(total), rel=2e-6)
    # The gradient of the logits is an operand of the next product, and that product rounded: 8 bits each.
    assert scored.head_VH is not None
    assert (scored.hidden_TH - gradient_TH).abs().max() <= 5e-3 * gradient_TH.abs().max()
    assert (scored.head_VH - gradient_VH).abs().max() <= 5e-3 * gradient_VH.abs().max()


def test_products_round_nothing_where_they_are_to_run_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(300, 300, generator=generator) for _ in range(2))
    with inner_dtype(torch.float32, torch.device("cpu")):
        found = product(left, right)
    exact = left.double() @ right.double()
    assert (found - exact).abs().max() < 2e-6 * exact.abs().max()


def test_the_log_of_a_softmax_s_sum_is_right_over_a_whole_vocabulary() -> None:
    logits_TV = 5 * torch.randn(3, 131_072, generator=torch.Generator().manual_seed(0))
    expected_T = torch.logsumexp(logits_TV.double(), dim=1)
    assert (softmax(logits_TV).log_sum_T - expected_T).abs().max() < 4e-6


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
    scored = cross_entropy(student_TH, Head(head_VH, cap), labels_T, chunk=chunk)
    assert_equal(scored, (total.detach(), hidden.grad, head.grad), error=2e-6)


def test_losses_scale_values_and_gradients_alike() -> None:
    given = tensors()
    student_TH, head_VH, _, _, labels_T = given
    for once, half in (
        (found(given, hard=0.5), found(given, hard=0.5, scale=0.5)),
        (cross_entropy(student_TH, Head(head_VH), labels_T),
         cross_entropy(student_TH, Head(head_VH), labels_T, scale=0.5)),
    ):  # fmt: skip
        for whole, part in zip(once, half, strict=True):
            assert whole is not None and part is not None
            torch.testing.assert_close(part, whole / 2, rtol=1e-5, atol=1e-6)


def test_losses_make_no_head_gradient_when_the_head_is_frozen() -> None:
    student_TH, head_VH, teacher_TG, head_VG, labels_T = tensors()
    frozen = Head(head_VH.detach())
    assert match(student_TH, frozen, Whole(teacher_TG, Head(head_VG)), FORWARD_KL).head_VH is None
    assert cross_entropy(student_TH, frozen, labels_T).head_VH is None


def test_losses_of_no_tokens_are_zero() -> None:
    student_TH, head_VH, teacher_TG, head_VG, labels_T = tensors()
    none = slice(0, 0)
    whole = Whole(teacher_TG[none], Head(head_VG))
    assert float(cross_entropy(student_TH[none], Head(head_VH), labels_T[none]).total) == 0
    assert float(match(student_TH[none], Head(head_VH), whole, FORWARD_KL).total) == 0
