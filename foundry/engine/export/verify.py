"""Whether a file does in its own runtime what the model does in transformers. A file that does not is not shipped.

The reference is the plain folder, opened by transformers in a process of its own and computed in float32. An f16 file
must continue prompts as the reference does; a quantised one may differ, within bounds on the held-out loss and on how
often the most likely token is another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foundry.engine.export.exam import Exam
from foundry.engine.export.runtime import Answers, Continuation
from foundry.errors import ExportFailed, TooLossy

_TIE_NATS = (0.02, 0.1)
"""Two tokens closer than the first figure are a tie that rounding may break: an f16 cache moves logits by up to that.
Where the file's own rounding is larger, as in an untrained model, a tie is wider, but never wider than the second."""
_SIGMAS = 3.0


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is still rounding and not a mistake."""

    loss_nats: float
    """Largest difference of the mean held-out loss, to either side."""
    top1_ratio: float
    """Smallest share of positions with the same most likely token."""


BOUNDS: Mapping[str, Bounds] = {
    "gguf:f16": Bounds(loss_nats=0.002, top1_ratio=0.97),
    "gguf:q8_0": Bounds(loss_nats=0.02, top1_ratio=0.8),
    "gguf:q6_k": Bounds(loss_nats=0.05, top1_ratio=0.6),
    "gguf:q5_k_m": Bounds(loss_nats=0.1, top1_ratio=0.4),
    "gguf:q4_k_m": Bounds(loss_nats=0.25, top1_ratio=0.2),
    "gguf:mixed": Bounds(loss_nats=0.25, top1_ratio=0.2),
    "onnx:fp32": Bounds(loss_nats=0.002, top1_ratio=0.97),
    "onnx:int8": Bounds(loss_nats=0.05, top1_ratio=0.6),
    "onnx:int4": Bounds(loss_nats=0.25, top1_ratio=0.2),
}
"""A wrong permutation, scale or rope setting costs whole nats. The loss decides for trained models; what the
demo's teacher loses stands in docs/results.md and is far inside. The ratios are low because a model with random weights
has near ties everywhere."""
_EXACT = ("gguf:f16", "onnx:fp32")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the comparison gave. Losses in nats per counted token."""

    held_out_loss: float
    loss_difference: float
    """To the reference, over all scored tokens."""
    top1_ratio: float
    greedy_tokens: int
    """Equal greedy tokens, in the prompt where they are fewest."""
    tokens: int


def compare_answers(
    form: str, answers: Answers, reference: Answers, exam: Exam, excused: Callable[[str], bool] = lambda text: False
) -> Findings:
    """Judge a file by what its runtime said. Raises `ExportFailed` with the first thing that is wrong.

    `excused` names the texts that the runtime is known to cut otherwise.
    """
    _same_tokens(answers, reference, exam.questions.texts, excused)
    _same_texts(answers, reference, exam.questions.texts, excused)
    tie_nats = _tie_nats(_differences(answers, reference))
    pairs = zip(answers.continuations, reference.continuations, strict=True)
    equal = [_equal_tokens(form, mine, theirs, tie_nats) for mine, theirs in pairs]
    findings = findings_of(answers, reference, exam, min(equal))
    _within_bounds(form, findings, _differences(answers, reference))
    return findings


def findings_of(answers: Answers, reference: Answers, exam: Exam, greedy_tokens: int) -> Findings:
    """The figures of a comparison, not yet judged."""
    losses_T, counted_T = np.concatenate(answers.losses), np.concatenate(exam.counted)
    same_T = np.concatenate(answers.likeliest) == np.concatenate(reference.likeliest)
    return Findings(
        held_out_loss=float(losses_T[counted_T].mean()),
        loss_difference=float(_differences(answers, reference).mean()),
        top1_ratio=float(same_T.mean()),
        greedy_tokens=greedy_tokens,
        tokens=int(counted_T.sum()),
    )


def _differences(answers: Answers, reference: Answers) -> np.ndarray:
    """Loss minus the reference's for every scored token."""
    difference: np.ndarray = np.concatenate(answers.losses) - np.concatenate(reference.losses)
    return difference


def _same_tokens(answers: Answers, reference: Answers, texts: Sequence[str], excused: Callable[[str], bool]) -> None:
    for given, expected in (
        (answers.token_ids, reference.token_ids),
        (answers.bare_token_ids, reference.bare_token_ids),
    ):
        for text, mine, theirs in zip(texts, given, expected, strict=True):
            if mine != theirs and not excused(text):
                raise ExportFailed(
                    f"its runtime cuts {text!r:.60} into other tokens than the tokenizer: {_excerpt(mine, theirs)}"
                )


def _same_texts(answers: Answers, reference: Answers, texts: Sequence[str], excused: Callable[[str], bool]) -> None:
    """What transformers gives back as it was, the runtime must give back as it was.

    But for a space before everything, which some tokenizers put there and take away again.
    """
    for text, mine, theirs in zip(texts, answers.texts_back, reference.texts_back, strict=True):
        if theirs == text and mine not in (text, " " + text) and not excused(text):
            raise ExportFailed(f"its runtime makes {mine!r:.60} of the tokens of {text!r:.60}")


def _excerpt(mine: Sequence[int], theirs: Sequence[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    return f"{list(mine[at : at + 6])} where {list(theirs[at : at + 6])} are expected, from token {at} on"


def _tie_nats(differences_T: np.ndarray) -> float:
    """Six standard deviations of the rounding: about four of the difference of two logits."""
    least, most = _TIE_NATS
    return min(most, max(least, 6 * float(differences_T.std())))


def _equal_tokens(form: str, answer: Continuation, reference: Continuation, tie_nats: float) -> int:
    """How many greedy tokens are equal. Raises for a format that must be exact, unless the reference is at a tie."""
    pairs = zip(answer.tokens, reference.tokens, strict=True)
    at = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), len(reference.tokens))
    if at == len(reference.tokens) or form not in _EXACT:
        return at
    tie = answer.tokens[at] == reference.seconds[at] and reference.margins[at] < tie_nats
    if not tie:
        raise ExportFailed(
            f"its runtime continues a prompt differently from token {at} on: {answer.tokens[at]} where transformers "
            f"has {reference.tokens[at]}, which leads by {reference.margins[at]:.3f} nats"
        )
    return at


def _within_bounds(form: str, findings: Findings, differences_T: np.ndarray) -> None:
    bounds, count = BOUNDS[form], len(differences_T)
    if not math.isfinite(findings.held_out_loss):
        raise ExportFailed("its held-out loss is not a finite number")
    error = _SIGMAS * float(differences_T.std()) / math.sqrt(count)
    if abs(findings.loss_difference) - error > bounds.loss_nats:
        raise TooLossy(
            f"its held-out loss differs by {findings.loss_difference:+.4f} nats from the same weights in transformers; "
            f"{bounds.loss_nats} are allowed for {form}"
        )
    allowed = (1 - bounds.top1_ratio) * count
    if (1 - findings.top1_ratio) * count > allowed + _SIGMAS * math.sqrt(allowed):
        raise TooLossy(
            f"its most likely token is that of transformers at {findings.top1_ratio:.1%} of the positions; "
            f"{bounds.top1_ratio:.1%} are expected of {form}"
        )
