"""The text a training stage learns from and the text it watches its held-out loss on."""

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.corpus import HELD_OUT_TOKENS, Corpus, Packed, pack
from foundry.errors import DamagedCheckpoint
from foundry.spec.lifecycle import EventType, StageName

_WATCHED_TOKENS = 16_384
"""Held-out text that is scored at each look during a run; the evaluate stage reads more."""
_WATCHED_SHARE = 1 / 64
"""Of the training tokens at most, so that eleven looks cost about a twentieth of a short run."""
_FEWEST_WATCHED_TOKENS = 2048


class Texts(NamedTuple):
    """Both sides, packed to one length."""

    train: Packed
    held_out: Packed


def read_texts(
    stage: StageName, data: Path | str, tokenizer: PreTrainedTokenizerBase, sequence_tokens: int, max_tokens: int,
    vocabulary: int, seed: int, context: RunContext,
) -> Texts:  # fmt: skip
    """Pack at most `max_tokens` of the training side; say so when the held-out side had to be filled up."""
    corpus = Corpus.load(data, tokenizer, seed=seed)
    if corpus.moved:
        context.report(
            EventType.LOG,
            f"{stage}: the hash alone holds out too little of this small data; {corpus.moved} more documents are held "
            f"out to reach {HELD_OUT_TOKENS} tokens or a tenth",
            stage=stage, documents=corpus.moved,
        )  # fmt: skip
    train = pack(corpus.train, tokenizer, sequence_tokens, max_tokens=max_tokens, seed=seed)
    watched = min(_WATCHED_TOKENS, max(_FEWEST_WATCHED_TOKENS, int(_WATCHED_SHARE * max_tokens)))
    held_out = pack(corpus.held_out, tokenizer, sequence_tokens, max_tokens=watched, seed=seed)
    largest = max(int(train.ids_NS.max()), int(held_out.ids_NS.max()))
    if largest >= vocabulary:
        raise DamagedCheckpoint(
            f"the tokenizer gives token {largest}, but the teacher's embedding has {vocabulary} rows; "
            "the tokenizer beside the teacher is not its own: save the right one there",
            pointer="/teacher",
        )
    return Texts(train, held_out)
