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
            outputs = [
                _outputs(model, batch.model_inputs(), batch.targets_BS, context)
                for model in (student, teacher)
                if model is not None
            ]
            sums += sums_of(labels_T, *outputs)
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


@dataclass(frozen=True)
class Outputs:
    """What a model's head reads at the counted positions [T, H], and the head [V, H]: operands of `product`."""

    hidden_TH: Tensor
    head_VH: Tensor
    softcap: float | None


def sums_of(labels_T: Tensor, student: Outputs, teacher: Outputs | None = None) -> Tensor:
    """Sums over T of cross entropy, KL(teacher || student) and top-1 agreement, in float64; the last two may be 0."""
    sums = torch.zeros(3, dtype=torch.float64, device=labels_T.device)
    step = chunk_tokens(student.head_VH.shape[0], labels_T.device)
    for start in range(0, len(labels_T), step):
        part = slice(start, start + step)
        teacher_TV = _logits(teacher, part) if teacher is not None else None
        sums += _chunk_sums(_logits(student, part), teacher_TV, labels_T[part])
    return sums


def _outputs(model: PreTrainedModel, inputs: dict[str, object], targets_BS: Tensor, context: RunContext) -> Outputs:
    trunk, head_VH, softcap = trunk_and_head(model)
    hidden_BSH = trunk_hidden(trunk, inputs, context.dtype, context.device)
    return Outputs(operand(hidden_BSH[targets_BS], context.dtype), operand(head_VH, context.dtype), softcap)


def _logits(outputs: Outputs, part: slice) -> Tensor:
    return logits_of(outputs.hidden_TH[part], outputs.head_VH, outputs.softcap)


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
