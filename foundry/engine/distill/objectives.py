"""What a batch asks of its learners: to match a teacher, or to predict the text itself."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foundry.engine.context import RunContext
from foundry.engine.distill.divergences import Divergence, divergence_of, forward_kl
from foundry.engine.distill.hidden import watching
from foundry.engine.distill.learner import Lesson
from foundry.engine.distill.losses import HardLabels, Head, Scored, Signal, Whole, cross_entropy, match
from foundry.engine.distill.parallel import whole
from foundry.engine.distill.signal import SavedSignal
from foundry.engine.distill.trainer import Objective
from foundry.engine.models import trunk_and_head
from foundry.engine.packed import Batch
from foundry.engine.products import trunk_hidden
from foundry.spec.stages import Distill


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What matching a teacher means."""

    divergence: Divergence = forward_kl
    temperature: float = 1.0
    cross_entropy_weight: float = 0.0

    @classmethod
    def of(cls, config: Distill) -> "Goal":
        """The goal that a spec states."""
        return cls(
            divergence=divergence_of(config.loss), temperature=config.temperature,
            cross_entropy_weight=config.cross_entropy_weight,
        )  # fmt: skip

    def lesson(self, signal: Signal, batch: Batch, scale: float, dtype: torch.dtype) -> Lesson:
        """What a learner has to do with this batch, of which the teacher says `signal`."""
        labels_T = batch.labels_BS[batch.targets_BS]
        hard = HardLabels(labels_T, self.cross_entropy_weight) if self.cross_entropy_weight else None

        def score(student_TH: Tensor, student: Head) -> Scored:
            return match(
                student_TH, student, signal, self.divergence,
                temperature=self.temperature, hard=hard, dtype=dtype, scale=scale,
            )  # fmt: skip

        return Lesson(score, scale)


def match_teacher(
    teacher: PreTrainedModel, goal: Goal, context: RunContext, layers: Collection[int] = ()
) -> Objective:  # fmt: skip
    """Match the teacher's whole distribution, and its hidden states behind some layers.

    The teacher runs once for all students of a batch.
    """
    watched = sorted(set(layers))
    trunk, head_VG, softcap = trunk_and_head(teacher)
    head = Head(head_VG, softcap)

    def objective(batch: Batch, scale: float) -> Lesson:
        with torch.no_grad(), watching(teacher, watched) as seen:
            hidden_BSG = trunk_hidden(trunk, batch.model_inputs(), context.dtype, context.device)
        # Gathered once for all students where the teacher lies in shards.
        said = Whole(hidden_BSG[batch.targets_BS], head._replace(weight_VH=whole(head.weight_VH)))
        lesson = goal.lesson(said, batch, scale, context.dtype)
        return lesson._replace(states={layer: state_BSG[batch.targets_BS] for layer, state_BSG in seen.items()})

    return objective


def match_saved(saved: SavedSignal, goal: Goal, context: RunContext) -> Objective:
    """Match what a teacher that is no longer there said of the same text."""

    def objective(batch: Batch, scale: float) -> Lesson:
        return goal.lesson(saved.of(batch.rows_B, context.device), batch, scale, context.dtype)

    return objective


def predict_text(context: RunContext) -> Objective:
    """Cross entropy on the counted tokens."""

    def objective(batch: Batch, scale: float) -> Lesson:
        labels_T = batch.labels_BS[batch.targets_BS]

        def score(hidden_TH: Tensor, head: Head) -> Scored:
            return cross_entropy(hidden_TH, head, labels_T, dtype=context.dtype, scale=scale)

        return Lesson(score, scale)

    return objective
