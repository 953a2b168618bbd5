"""What a batch asks of its learners: to match a teacher, or to predict the text itself."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.corpus import Batch
from foundry.engine.distill.learner import Score
from foundry.engine.distill.losses import Head, Scored, cross_entropy, forward_kl
from foundry.engine.distill.trainer import Objective
from foundry.engine.models import trunk_and_head
from foundry.engine.products import trunk_hidden


def match_teacher(teacher: PreTrainedModel, temperature: float, context: RunContext) -> Objective:
    """Forward KL to the teacher's distribution; the teacher runs once for all students of a batch."""
    trunk, head_VG, softcap = trunk_and_head(teacher)
    teacher_head = Head(head_VG, softcap)

    def objective(batch: Batch, scale: float) -> Score:
        with torch.no_grad():
            hidden_BSG = trunk_hidden(trunk, batch.model_inputs(), context.dtype, context.device)
        teacher_TG = hidden_BSG[batch.targets_BS]

        def score(student_TH: Tensor, student_head: Head) -> Scored:
            return forward_kl(
                student_TH, student_head, teacher_TG, teacher_head,
                temperature=temperature, dtype=context.dtype, scale=scale,
            )  # fmt: skip

        return score

    return objective


def predict_text(context: RunContext) -> Objective:
    """Cross entropy on the counted tokens."""

    def objective(batch: Batch, scale: float) -> Score:
        labels_T = batch.labels_BS[batch.targets_BS]

        def score(hidden_TH: Tensor, head: Head) -> Scored:
            return cross_entropy(hidden_TH, head, labels_T, dtype=context.dtype, scale=scale)

        return score

    return objective
