"""Losses on the output distribution, from hidden states to gradients, a few tokens at a time.

Each function takes the hidden states of counted tokens and the output matrices, and returns the loss summed over the
tokens together with its gradients. A gradient of a softmax is known in closed form, so nothing is kept for a backward
pass and [T, V] never exists: one chunk [C, V] is made, used and overwritten.

T: counted tokens, C: tokens of a chunk, V: vocabulary, H: hidden of the student, G: hidden of the teacher,
K: likeliest tokens that a signal knows, O = K + 1: those and the rest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from foundry.engine.distill.divergences import Divergence
from foundry.engine.distill.parallel import whole
from foundry.engine.products import (
    Softmax,
    add_product,
    chunk_tokens,
    logits_of,
    operand,
    rounded_product,
    slope_of_cap,
    softmax,
)

_FLOOR = -1e4
"""Stands for the log of 0 where an infinity would turn 0 x log 0 into no number."""


class Head(NamedTuple):
    """The last matrix of a model, and the cap on its logits where the family has one."""

    weight_VH: Tensor
    softcap: float | None = None
    gradient_VH: Tensor | None = None
    """What the loss's gradient is added to, in float32; without it a new one is made."""


class Whole(NamedTuple):
    """The teacher's whole distribution: what its head reads, and the head."""

    hidden_TG: Tensor
    head: Head


class TopK(NamedTuple):
    """The teacher's likeliest tokens, and one more outcome for all the others together (the tail bucket).

    Renormalising the K instead would leave the student's probability outside them free of cost.
    """

    ids_TK: Tensor
    """int64; different from each other within a token."""
    log_TK: Tensor
    """Log probabilities at the temperature of the loss."""
    log_rest_T: Tensor
    """Log probability of all other tokens together; minus infinity when there are none."""


Signal = Whole | TopK
"""What the teacher says about a batch."""


class HardLabels(NamedTuple):
    """Cross entropy with the text beside the divergence from the teacher."""

    labels_T: Tensor
    weight: float


class Scored(NamedTuple):
    """A loss summed over tokens, and what its gradient is."""

    total: Tensor
    """Scalar, float64."""
    hidden_TH: Tensor
    """d total / d hidden, float32."""
    head_VH: Tensor | None
    """d total / d output matrix, float32, or what it was added to; None when the matrix is frozen."""


def match(
    student_TH: Tensor, student: Head, teacher: Signal, divergence: Divergence, *,
    temperature: float = 1.0, hard: HardLabels | None = None,
    dtype: torch.dtype = torch.float32, scale: float = 1.0, chunk: int | None = None,
) -> Scored:  # fmt: skip
    """temperature^2 x divergence(teacher / temperature, student / temperature) + weight x cross entropy, times `scale`.

    The square keeps the size of the gradient when the temperature changes (Hinton, 1503.02531); cross entropy is taken
    at temperature 1. `dtype` is that of matrix products (see `inner_dtype`); everything between them is float32.
    On a CPU gradients are rounded to `dtype` where their products come out.
    """
    walk = _Walk(student_TH, student, dtype, chunk)
    taught = _operands(teacher, dtype) if isinstance(teacher, Whole) else None
    for part in walk.parts:
        logits_CV = walk.logits(part)
        gradient_CV = None if hard is None else _add_hard(walk, logits_CV.clone(), hard, part, scale)
        said = softmax(logits_CV, temperature)
        slope_CV = slope_of_cap(said.logits_TV, temperature, student.softcap)
        if taught is not None:
            theirs = softmax(logits_of(taught.hidden_TG[part], taught.head.weight_VH, taught.head.softcap), temperature)
            loss_C, soft_CV = divergence(theirs, said)
        else:
            assert isinstance(teacher, TopK)
            loss_C, soft_CV = _on_outcomes(TopK(*(tensor[part] for tensor in teacher)), said, divergence)
        walk.total += loss_C.double().sum() * (temperature**2 * scale)
        # d / d logits is 1 / temperature of d / d (logits / temperature)
        soft_CV.mul_(temperature * scale)
        gradient_CV = soft_CV if gradient_CV is None else gradient_CV.add_(soft_CV)
        walk.add(part, gradient_CV if slope_CV is None else gradient_CV.mul_(slope_CV))
    return walk.scored()


def cross_entropy(
    hidden_TH: Tensor, head: Head, labels_T: Tensor, *,
    dtype: torch.dtype = torch.float32, scale: float = 1.0, chunk: int | None = None,
) -> Scored:  # fmt: skip
    """-log softmax(logits)[label], times `scale`."""
    walk = _Walk(hidden_TH, head, dtype, chunk)
    for part in walk.parts:
        logits_CV = walk.logits(part)
        slope_CV = slope_of_cap(logits_CV, 1.0, head.softcap)
        gradient_CV = _add_hard(walk, logits_CV, HardLabels(labels_T, 1.0), part, scale)
        walk.add(part, gradient_CV if slope_CV is None else gradient_CV.mul_(slope_CV))
    return walk.scored()


class _Walk:
    """Goes over the tokens in chunks; gathers the loss, d loss / d hidden and d loss / d head."""

    def __init__(self, hidden_TH: Tensor, head: Head, dtype: torch.dtype, chunk: int | None) -> None:
        hidden_TH, weight_VH = hidden_TH.detach(), whole(head.weight_VH.detach())
        self._hidden_TH, self._weight_VH = operand(hidden_TH, dtype), operand(weight_VH, dtype)
        # For gradients, whose products may round what they are made of, as those of the layers do.
        self._rounded_TH, self._rounded_VH = hidden_TH.to(dtype), weight_VH.to(dtype)
        self._softcap, self._dtype = head.softcap, dtype
        self.total = torch.zeros((), dtype=torch.float64, device=hidden_TH.device)
        self._gradient_TH = torch.empty_like(self._hidden_TH, dtype=torch.float32)
        trained = head.weight_VH.requires_grad
        self._gradient_VH = head.gradient_VH
        if trained and self._gradient_VH is None:
            self._gradient_VH = torch.zeros_like(self._weight_VH, dtype=torch.float32)
        step = chunk or chunk_tokens(self._weight_VH.shape[0], hidden_TH.device)
        self.parts = [slice(start, start + step) for start in range(0, hidden_TH.shape[0], step)]

    def logits(self, part: slice) -> Tensor:
        """Of the student, capped where its family caps them."""
        return logits_of(self._hidden_TH[part], self._weight_VH, self._softcap)

    def add(self, part: slice, gradient_CV: Tensor) -> None:
        """Take the gradient of a chunk's logits (before the cap)."""
        gradient_CV = gradient_CV.to(self._dtype)
        self._gradient_TH[part] = rounded_product(gradient_CV, self._rounded_VH)
        if self._gradient_VH is not None:
            add_product(self._gradient_VH, gradient_CV.T, self._rounded_TH[part])

    def scored(self) -> Scored:
        return Scored(self.total, self._gradient_TH, self._gradient_VH)


def _operands(teacher: Whole, dtype: torch.dtype) -> Whole:
    head = teacher.head._replace(weight_VH=operand(teacher.head.weight_VH.detach(), dtype))
    return Whole(operand(teacher.hidden_TG.detach(), dtype), head)


def _add_hard(walk: _Walk, logits_CV: Tensor, hard: HardLabels, part: slice, scale: float) -> Tensor:
    """Add a chunk's cross entropy to the total; return its gradient by the capped logits, which are overwritten."""
    labels_C1 = hard.labels_T[part, None]
    said = softmax(logits_CV)
    weight = hard.weight * scale
    walk.total += (said.log_sum_T - said.logits_TV.gather(1, labels_C1).squeeze(1)).double().sum() * weight
    # q - 1 at the label
    q_CV = said.probabilities_TV
    return q_CV.scatter_add_(1, labels_C1, q_CV.new_full(labels_C1.shape, -1.0)).mul_(weight)


def _on_outcomes(teacher: TopK, student: Softmax, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """A divergence over the K tokens and the rest, and its gradient by all of the student's logits.

    The rest's logit is u = log sum exp of the logits in it, so d u / d z_i = q_i / q_rest there.
    """
    theirs_CO = torch.cat([teacher.log_TK, teacher.log_rest_T[:, None]], dim=1).clamp_min(_FLOOR)
    q_CV = student.probabilities_TV
    known_CK = q_CV.gather(1, teacher.ids_TK)
    # Summed, not 1 - known: that difference would have no digits left when the K hold nearly all.
    q_CV.scatter_(1, teacher.ids_TK, 0.0)
    rest_C1 = q_CV.sum(dim=1, keepdim=True)
    log_rest_C1 = rest_C1.log().add_(student.log_sum_T[:, None]).clamp_min_(_FLOOR)
    mine = Softmax(
        torch.cat([known_CK, rest_C1], dim=1),
        torch.cat([student.logits_TV.gather(1, teacher.ids_TK), log_rest_C1], dim=1),
        student.log_sum_T,
    )
    loss_C, gradient_CO = divergence(softmax(theirs_CO), mine)
    share_C1 = gradient_CO[:, -1:] / rest_C1.clamp_min(torch.finfo(rest_C1.dtype).tiny)
    return loss_C, q_CV.mul_(share_C1).scatter_(1, teacher.ids_TK, gradient_CO[:, :-1])
