"""How well a model predicts held-out text, and how close it is to its teacher.

T: counted tokens, V: vocabulary, H: hidden, D: documents.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.models import trunk_and_head
from foundry.engine.packed import Packed
from foundry.engine.products import chunk_tokens, inner_dtype, logits_of, operand, softmax, trunk_hidden
from foundry.errors import DamagedCheckpoint

_BATCH_TOKENS = 4096
_NEAR = 5


@dataclass(frozen=True, kw_only=True)
class PerDocument:
    """Sums over the counted tokens of each document, in float64: what intervals are made from."""

    tokens_D: np.ndarray
    bytes_D: np.ndarray
    nats_D: np.ndarray
    kl_D: np.ndarray
    top1_D: np.ndarray
    top5_D: np.ndarray


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
    """Share of tokens where the student's likeliest is the teacher's."""
    top5_agreement_ratio: float | None
    """Share of tokens where the teacher's likeliest is among the student's five likeliest."""
    tokens: int
    per_document: PerDocument | None = field(default=None, repr=False, compare=False)
    """Of the documents in which anything counts; None when the text does not know its documents."""


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
    found: list[Tensor] = []
    rows = batch_rows or max(1, _BATCH_TOKENS // packed.sequence_tokens)
    with inner_dtype(context.dtype, context.device):
        for batch in packed.batches(rows, context.device):
            context.heed()
            labels_T = batch.labels_BS[batch.targets_BS]
            outputs = [
                _outputs(model, batch.model_inputs(), batch.targets_BS, context)
                for model in (student, teacher)
                if model is not None
            ]
            found.append(figures_of(labels_T, *outputs))
    return _summed(torch.cat(found).cpu().numpy(), packed, with_teacher=teacher is not None)


def _summed(figures_T4: np.ndarray, packed: Packed, *, with_teacher: bool) -> Comparison:
    tokens = packed.counted_tokens
    total_nats, total_kl, agreed, near = figures_T4.sum(axis=0).tolist()
    loss = total_nats / tokens
    return Comparison(
        held_out_loss=loss,
        perplexity=math.exp(min(loss, 700)),
        bits_per_byte=total_nats / math.log(2) / packed.bytes if packed.bytes else None,
        kl_to_teacher=total_kl / tokens if with_teacher else None,
        top1_agreement_ratio=agreed / tokens if with_teacher else None,
        top5_agreement_ratio=near / tokens if with_teacher else None,
        tokens=tokens,
        per_document=_by_document(figures_T4, packed),
    )


def _by_document(figures_T4: np.ndarray, packed: Packed) -> PerDocument | None:
    if packed.documents_NS is None:
        return None
    document_T = packed.documents_NS[packed.targets_NS].numpy()
    documents = int(document_T.max()) + 1
    tokens_D = np.bincount(document_T, minlength=documents).astype(np.float64)
    bytes_D = np.asarray([packed.document_bytes.get(place, 0) for place in range(documents)], dtype=np.float64)
    counted_D = tokens_D > 0
    sums = [np.bincount(document_T, weights=column_T, minlength=documents)[counted_D] for column_T in figures_T4.T]
    return PerDocument(
        tokens_D=tokens_D[counted_D], bytes_D=bytes_D[counted_D], nats_D=sums[0], kl_D=sums[1], top1_D=sums[2],
        top5_D=sums[3],
    )  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """What a model's head reads at the counted positions [T, H], and the head [V, H]: operands of `product`."""

    hidden_TH: Tensor
    head_VH: Tensor
    softcap: float | None


def figures_of(labels_T: Tensor, student: Outputs, teacher: Outputs | None = None) -> Tensor:
    """Cross entropy, KL(teacher || student), top-1 and top-5 agreement of every token [T, 4], in float64.

    All but the first are 0 without a teacher. Logits exist for a few tokens at a time.
    """
    step = chunk_tokens(student.head_VH.shape[0], labels_T.device)
    parts = [slice(start, start + step) for start in range(0, len(labels_T), step)]
    found = [
        _chunk(_logits(student, part), None if teacher is None else _logits(teacher, part), labels_T[part])
        for part in parts
    ]
    return torch.cat(found) if found else torch.zeros((0, 4), dtype=torch.float64, device=labels_T.device)


def _outputs(model: PreTrainedModel, inputs: dict[str, object], targets_BS: Tensor, context: RunContext) -> Outputs:
    trunk, head_VH, softcap = trunk_and_head(model)
    hidden_BSH = trunk_hidden(trunk, inputs, context.dtype, context.device)
    return Outputs(operand(hidden_BSH[targets_BS], context.dtype), operand(head_VH, context.dtype), softcap)


def _logits(outputs: Outputs, part: slice) -> Tensor:
    return logits_of(outputs.hidden_TH[part], outputs.head_VH, outputs.softcap)


def _chunk(student_TV: Tensor, teacher_TV: Tensor | None, labels_T: Tensor) -> Tensor:
    _, student_TV, student_log_sum_T = softmax(student_TV)
    nats_T = student_log_sum_T - student_TV.gather(1, labels_T[:, None]).squeeze(1)
    if teacher_TV is None:
        none_T = torch.zeros_like(nats_T)
        return torch.stack([nats_T, none_T, none_T, none_T], dim=1).double()
    p_TV, teacher_TV, teacher_log_sum_T = softmax(teacher_TV)
    likeliest_T1 = teacher_TV.argmax(dim=1, keepdim=True)
    above_T = (student_TV > student_TV.gather(1, likeliest_T1)).sum(dim=1)
    # KL = sum p (log p - log q) = sum p (z_p - z_q) - log sum exp z_p + log sum exp z_q
    distance_T = teacher_TV.sub_(student_TV).mul_(p_TV).sum(dim=1)
    kl_T = distance_T - teacher_log_sum_T + student_log_sum_T
    return torch.stack([nats_T, kl_T, above_T == 0, above_T < _NEAR], dim=1).double()


def check_same_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Distributions over two vocabularies cannot be compared; cutting or padding one would be wrong in silence."""
    mine, theirs = trunk_and_head(student).head_VH.shape[0], trunk_and_head(teacher).head_VH.shape[0]
    if mine != theirs:
        raise DamagedCheckpoint(
            f"the student predicts {mine:,} tokens and its teacher {theirs:,}; both must have one vocabulary: prune "
            "this teacher again, or give both models output matrices of one size",
            pointer="/teacher",
        )
