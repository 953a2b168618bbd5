"""The held-out side of the customer's data as every model of a job is measured on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.corpus import Corpus, pack
from foundry.engine.evaluate.answers import Prompt, answerable, prompts_of
from foundry.engine.evaluate.leakage import Leak, find_leaks
from foundry.engine.packed import Packed
from foundry.spec.lifecycle import EventType
from foundry.spec.stages import Evaluate

_NAMED_LEAKS = 5


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Text without what was trained on, the prompts that have one right answer, and some to look at."""

    packed: Packed
    questions: Sequence[Prompt]
    samples: Sequence[Prompt]
    documents: int
    """Held-out documents before the leaks were taken out."""
    leaks: Sequence[Leak]


def read_held_out(
    data: Path | str, tokenizer: PreTrainedTokenizerBase, sequence_tokens: int, wanted: Evaluate, context: RunContext
) -> HeldOut:
    """The held-out documents of a job's data, compared with its training side.

    Leaked documents are left out and named in a warning; when nothing else would be left they stay, with a louder one.
    Raises `InvalidData` when no token counts, and `Stopped`.
    """
    corpus = Corpus.load(data, tokenizer, seed=context.seed)
    checked = find_leaks(corpus.held_out, corpus.train, context.should_stop)
    if checked.leaks:
        _warn(checked.leaks, len(checked.clean), context)
    documents = checked.clean or corpus.held_out
    return HeldOut(
        packed=pack(documents, tokenizer, sequence_tokens, max_tokens=wanted.tokens, seed=context.seed),
        questions=answerable(documents, tokenizer, sequence_tokens),
        samples=prompts_of(documents, tokenizer, sequence_tokens, wanted.samples),
        documents=len(corpus.held_out),
        leaks=checked.leaks,
    )


def _warn(leaks: Sequence[Leak], clean: int, context: RunContext) -> None:
    some = ", ".join(leak.key for leak in leaks[:_NAMED_LEAKS]) + (", ..." if len(leaks) > _NAMED_LEAKS else "")
    done = (
        "they are left out of what is measured"
        if clean
        else "nothing else is held out, so they are measured all the same: these figures say what was memorised"
    )
    context.report(
        EventType.WARNING,
        f"{len(leaks)} of {len(leaks) + clean} held-out documents also stand in the training text ({some}); {done}. "
        'Give the copies one "id", or remove them',
        level="warning", stage="evaluate", leaked=[leak.key for leak in leaks], clean=clean,
    )  # fmt: skip
