"""Losses on the output distribution, from hidden states to gradients, a few tokens at a time.

Each function takes the hidden states of counted tokens and the output matrices, and returns the loss summed over the
tokens together with its gradients. A gradient of a softmax is known in closed form, so nothing is kept for a backward
pass and [T, V] never exists: one chunk [C, V] is made, used and overwritten.

T: counted tokens, C: tokens of a chunk, V: vocabulary, H: hidden of the student, G: hidden of the teacher.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from foundry.engine.products import chunk_tokens, logits_of, operand, product, softmax


class Head(NamedTuple):
    """The last matrix of a model, and the cap on its logits where the family has one."""

    weight_VH: Tensor
    softcap: float | None = None


class Scored(NamedTuple):
    """A loss summed over tokens, and what its gradient is."""

    total: Tensor
    """Scalar, float64."""
    hidden_TH: Tensor
    """d total / d hidden, float32."""
    head_VH: Tensor | None
    """d total / d output matrix, float32; None when it is frozen."""


def forward_kl(
    student_TH: Tensor, student: Head, teacher_TG: Tensor, teacher: Head, *,
    temperature: float = 1.0, dtype: torch.dtype = torch.float32, scale: float = 1.0, chunk: int | None = None,
) -> Scored:  # fmt: skip
    """temperature^2 x KL(softmax(teacher / temperature) || softmax(student / temperature)), times `scale`.

    The square keeps the size of the gradient when the temperature changes (Hinton, 1503.02531). `dtype` is that of
    matrix products (see `inner_dtype`); everything between them is float32.
    """
    weight_VH, weight_VG = operand(student.weight_VH.detach(), dtype), operand(teacher.weight_VH.detach(), dtype)
    hidden_TH, hidden_TG = operand(student_TH.detach(), dtype), operand(teacher_TG.detach(), dtype)
    gradients = _Gradients(hidden_TH, weight_VH, dtype, with_head=student.weight_VH.requires_grad)
    total = torch.zeros((), dtype=torch.float64, device=hidden_TH.device)
    for part in _parts(hidden_TH, weight_VH, chunk):
        teacher_logits_CV = logits_of(hidden_TG[part], weight_VG, teacher.softcap)
        p_CV, teacher_CV, teacher_log_sum_C = softmax(teacher_logits_CV, temperature)
        student_logits_CV = logits_of(hidden_TH[part], weight_VH, student.softcap)
        q_CV, student_CV, student_log_sum_C = softmax(student_logits_CV, temperature)
        slope_CV = _slope_of_cap(student_CV, temperature, student.softcap)
        # KL = sum p (log p - log q) = sum p (z_p - z_q) - log sum exp z_p + log sum exp z_q
        distance_C = (teacher_CV.sub_(student_CV).mul_(p_CV)).sum(dim=1)
        total += (distance_C - teacher_log_sum_C + student_log_sum_C).double().sum()
        # d KL / d z = (q - p) / temperature
        gradient_CV = q_CV.sub_(p_CV).mul_(temperature * scale)
        gradients.add(part, gradient_CV if slope_CV is None else gradient_CV.mul_(slope_CV))
    return Scored(total * (temperature**2 * scale), gradients.hidden_TH, gradients.head_VH)


def cross_entropy(
    hidden_TH: Tensor, head: Head, labels_T: Tensor, *,
    dtype: torch.dtype = torch.float32, scale: float = 1.0, chunk: int | None = None,
) -> Scored:  # fmt: skip
    """-log softmax(logits)[label], times `scale`."""
    weight_VH, operand_TH = operand(head.weight_VH.detach(), dtype), operand(hidden_TH.detach(), dtype)
    gradients = _Gradients(operand_TH, weight_VH, dtype, with_head=head.weight_VH.requires_grad)
    total = torch.zeros((), dtype=torch.float64, device=hidden_TH.device)
    for part in _parts(operand_TH, weight_VH, chunk):
        labels_C1 = labels_T[part, None]
        q_CV, logits_CV, log_sum_C = softmax(logits_of(operand_TH[part], weight_VH, head.softcap))
        total += (log_sum_C - logits_CV.gather(1, labels_C1).squeeze(1)).double().sum()
        slope_CV = _slope_of_cap(logits_CV, 1.0, head.softcap)
        gradient_CV = q_CV.scatter_add_(1, labels_C1, q_CV.new_full(labels_C1.shape, -1.0)).mul_(scale)
        gradients.add(part, gradient_CV if slope_CV is None else gradient_CV.mul_(slope_CV))
    return Scored(total * scale, gradients.hidden_TH, gradients.head_VH)


class _Gradients:
    """Collects d loss / d hidden and d loss / d head from the gradient of one chunk of logits after another."""

    def __init__(self, hidden_TH: Tensor, weight_VH: Tensor, dtype: torch.dtype, *, with_head: bool) -> None:
        self._operand_TH, self._weight_VH, self._dtype = hidden_TH, weight_VH, dtype
        self.hidden_TH = torch.empty_like(hidden_TH, dtype=torch.float32)
        self.head_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if with_head else None

    def add(self, part: slice, gradient_CV: Tensor) -> None:
        gradient_CV = operand(gradient_CV, self._dtype)
        self.hidden_TH[part] = product(gradient_CV, self._weight_VH)
        if self.head_VH is not None:
            self.head_VH += product(gradient_CV.T, self._operand_TH[part])


def _slope_of_cap(scaled_CV: Tensor, temperature: float, softcap: float | None) -> Tensor | None:
    """d capped / d raw = 1 - tanh^2."""
    return None if softcap is None else 1 - (scaled_CV * (temperature / softcap)).square_()


def _parts(hidden_TH: Tensor, weight_VH: Tensor, chunk: int | None) -> list[slice]:
    step = chunk or chunk_tokens(weight_VH.shape[0], hidden_TH.device)
    return [slice(start, start + step) for start in range(0, hidden_TH.shape[0], step)]
