"""How well a model predicts held-out text, and how close it is to its teacher.

T: counted tokens of a chunk, V: vocabulary, H and G: hidden of student and teacher.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foundry.engine.context import RunContext, Stopped
from foundry.engine.corpus import Packed
from foundry.engine.models import trunk_and_head
from foundry.engine.products import chunk_tokens, inner_dtype, logits_of, operand, softmax, trunk_hidden
from foundry.errors import DamagedCheckpoint

_BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Means over the counted tokens; the numbers of `foundry.spec.variant.Metrics` by the same names."""

    held_out_loss: float
    """Cross entropy in nats per token."""
    perplexity: float
    bits_per_byte: float | None
    """Cross entropy of all counted tokens, ends of documents included, per UTF-8 byte of their text."""
    kl_to_teacher: float | None
    """KL(teacher || student) in nats per token."""
    top1_agreement_ratio: float | None
    tokens: int


@torch.no_grad()
def compare(
    student: PreTrainedModel, teacher: PreTrainedModel | None, packed: Packed, context: RunContext, *,
    batch_rows: int | None = None,
) -> Comparison:  # fmt: skip
    """Score `student` on every counted token; logits exist for a few tokens at a time, softmax runs in float32.

    Raises `Stopped` between batches when the run is asked to stop, `DamagedCheckpoint` when the vocabularies differ.
    """
    if teacher is not None:
        check_same_vocabulary(student, teacher)
    sums = torch.zeros(3, dtype=torch.float64, device=context.device)
    rows = batch_rows or max(1, _BATCH_TOKENS // packed.sequence_tokens)
    with inner_dtype(context.dtype, context.device):
        for batch in packed.batches(rows, context.device):
            if context.should_stop():
                raise Stopped
            labels_T = batch.labels_BS[batch.targets_BS]
            student_side = _Side(student, batch.model_inputs(), batch.targets_BS, context)
            teacher_side = (
                _Side(teacher, batch.model_inputs(), batch.targets_BS, context) if teacher is not None else None
            )
            step = chunk_tokens(student_side.head_VH.shape[0], context.device)
            for start in range(0, len(labels_T), step):
                part = slice(start, start + step)
                teacher_TV = teacher_side.logits(part) if teacher_side is not None else None
                sums += _chunk_sums(student_side.logits(part), teacher_TV, labels_T[part])
    tokens = packed.counted_tokens
    total_nats, total_kl, agreed = sums.tolist()
    loss = total_nats / tokens
    return Comparison(
        held_out_loss=loss,
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=total_nats / math.log(2) / packed.bytes if packed.bytes else None,
        kl_to_teacher=total_kl / tokens if teacher is not None else None,
        top1_agreement_ratio=agreed / tokens if teacher is not None else None,
        tokens=tokens,
    )


class _Side:
    """One model's hidden states of a batch, and its logits for a part of them."""

    def __init__(
        self, model: PreTrainedModel, inputs: dict[str, object], targets_BS: Tensor, context: RunContext
    ) -> None:
        trunk, head_VH, self._softcap = trunk_and_head(model)
        hidden_BSH = trunk_hidden(trunk, inputs, context.dtype, context.device)
        self._hidden_TH = operand(hidden_BSH[targets_BS], context.dtype)
        self.head_VH = operand(head_VH, context.dtype)

    def logits(self, part: slice) -> Tensor:
        return logits_of(self._hidden_TH[part], self.head_VH, self._softcap)


def _chunk_sums(student_TV: Tensor, teacher_TV: Tensor | None, labels_T: Tensor) -> Tensor:
    """Sums over T of cross entropy, KL(teacher || student) and top-1 agreement, in float64."""
    _, student_TV, student_log_sum_T = softmax(student_TV)
    nats = (student_log_sum_T - student_TV.gather(1, labels_T[:, None]).squeeze(1)).double().sum()
    if teacher_TV is None:
        return torch.stack([nats, nats.new_zeros(()), nats.new_zeros(())])
    p_TV, teacher_TV, teacher_log_sum_T = softmax(teacher_TV)
    agreed = (student_TV.argmax(dim=1) == teacher_TV.argmax(dim=1)).sum().double()
    # KL = sum p (log p - log q) = sum p (z_p - z_q) - log sum exp z_p + log sum exp z_q
    distance_T = teacher_TV.sub_(student_TV).mul_(p_TV).sum(dim=1)
    return torch.stack([nats, (distance_T - teacher_log_sum_T + student_log_sum_T).double().sum(), agreed])


def check_same_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Distributions over two vocabularies cannot be compared; cutting or padding one would be wrong in silence."""
    mine, theirs = trunk_and_head(student).head_VH.shape[0], trunk_and_head(teacher).head_VH.shape[0]
    if mine != theirs:
        raise DamagedCheckpoint(
            f"the student predicts {mine:,} tokens and its teacher {theirs:,}; both must have one vocabulary: prune "
            "this teacher again, or give both models output matrices of one size",
            pointer="/teacher",
        )
