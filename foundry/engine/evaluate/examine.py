"""One row of figures for one model, with intervals, and what it answers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.evaluate.answers import answer, exact_match, f1
from foundry.engine.evaluate.compare import Comparison, PerDocument, compare
from foundry.engine.evaluate.held_out import HeldOut
from foundry.engine.evaluate.intervals import Interval, Resampling
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.variant import Metrics


class Examined(NamedTuple):
    """What one model did."""

    row: Metrics
    samples: Sequence[str]
    """Its continuations of the held-out text's samples, in their order."""


class Examiner:
    """Puts every model to the same text. The reference is examined first: differences are taken to it."""

    def __init__(
        self, reference: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, text: HeldOut, context: RunContext
    ) -> None:
        self._reference, self._tokenizer, self._text, self._context = reference, tokenizer, text, context
        self._reference_nats_D: np.ndarray | None = None
        self._resamplings: dict[int, Resampling] = {}

    def reference(self, name: str, folder: Path) -> Examined:
        """Examine the reference itself: it has no distance to itself, only a loss."""
        assert self._reference is not None
        return self._examine(name, folder, self._reference, None)

    def model(self, name: str, folder: Path, model: PreTrainedModel) -> Examined:
        """Examine any other model."""
        return self._examine(name, folder, model, self._reference)

    def _examine(self, name: str, folder: Path, model: PreTrainedModel, reference: PreTrainedModel | None) -> Examined:
        text, context = self._text, self._context
        length = text.packed.sequence_tokens
        found = compare(model, reference, text.packed, context)
        asked = (*text.questions, *text.samples)
        said = answer(model, self._tokenizer, asked, length, context)
        checkpoint = open_checkpoint(folder)
        row = Metrics(
            model=name, parameters=checkpoint.family.parameter_count(checkpoint.shape, checkpoint.present),
            held_out_loss=found.held_out_loss, perplexity=found.perplexity, bits_per_byte=found.bits_per_byte,
            kl_to_teacher=found.kl_to_teacher, top1_agreement_ratio=found.top1_agreement_ratio,
            top5_agreement_ratio=found.top5_agreement_ratio, tokens=found.tokens,
        )  # fmt: skip
        row = row.model_copy(update=self._spread(found, own=reference is None))
        row = row.model_copy(update=self._matched(row, said[: len(text.questions)]))
        return Examined(row, said[len(text.questions) :])

    def _spread(self, found: Comparison, *, own: bool) -> dict[str, object]:
        """Documents, the difference to the reference, and the intervals."""
        per = found.per_document
        if per is None:
            return {}
        if own:
            self._reference_nats_D = per.nats_D
        intervals = _intervals(per, self._resampling(len(per.tokens_D)), closeness=not own)
        update: dict[str, object] = {"documents": len(per.tokens_D)}
        if not own and self._reference_nats_D is not None:
            over_D = per.nats_D - self._reference_nats_D
            update["loss_over_teacher"] = float(over_D.sum() / per.tokens_D.sum())
            intervals["loss_over_teacher"] = self._resampling(len(over_D)).ratio(over_D, per.tokens_D)
        return update | {"intervals": {name: interval for name, interval in intervals.items() if interval}}

    def _matched(self, row: Metrics, said: Sequence[str]) -> dict[str, object]:
        """Exact match and F1 of the answers, where the text has questions."""
        if not said:
            return {}
        pairs = list(zip(said, (prompt.reference for prompt in self._text.questions), strict=True))
        scores = {
            "exact_match_ratio": np.asarray([exact_match(*pair) for pair in pairs]),
            "f1_ratio": np.asarray([f1(*pair) for pair in pairs]),
        }
        resampling, ones_D = self._resampling(len(pairs)), np.ones(len(pairs))
        spread = {name: resampling.ratio(score_D, ones_D) for name, score_D in scores.items()}
        intervals = row.intervals | {name: interval for name, interval in spread.items() if interval}
        return {name: float(score_D.mean()) for name, score_D in scores.items()} | {
            "answers": len(pairs), "intervals": intervals,
        }  # fmt: skip

    def _resampling(self, documents: int) -> Resampling:
        if documents not in self._resamplings:
            self._resamplings[documents] = Resampling(documents, self._context.seed)
        return self._resamplings[documents]


def _intervals(per: PerDocument, resampling: Resampling, *, closeness: bool) -> dict[str, Interval | None]:
    loss = resampling.ratio(per.nats_D, per.tokens_D)
    found = {
        "held_out_loss": loss,
        "perplexity": (math.exp(min(loss[0], 700)), math.exp(min(loss[1], 700))) if loss else None,
        "bits_per_byte": resampling.ratio(per.nats_D / math.log(2), per.bytes_D),
    }
    if closeness:
        found |= {
            "kl_to_teacher": resampling.ratio(per.kl_D, per.tokens_D),
            "top1_agreement_ratio": resampling.ratio(per.top1_D, per.tokens_D),
            "top5_agreement_ratio": resampling.ratio(per.top5_D, per.tokens_D),
        }
    return found
