"""The text a training stage learns from and the text it watches its held-out loss on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from foundry.engine.context import RunContext
from foundry.engine.corpus import HELD_OUT_TOKENS, Corpus, pack
from foundry.engine.packed import Packed, mix
from foundry.errors import DamagedCheckpoint, InvalidData
from foundry.intake.documents import Document
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
    vocabulary: int, seed: int, context: RunContext, general_ratio: float | None = None,
    more: Sequence[Document] = (),
) -> Texts:  # fmt: skip
    """Pack at most `max_tokens` of the training side; say so when the held-out side had to be filled up.

    `general_ratio` is the share of general text among them; by default domain and general come as the data has them.
    `more` documents are trained on when the data's own have not filled the tokens.
    """
    corpus = Corpus.load(data, tokenizer, seed=seed)
    if corpus.moved:
        context.report(
            EventType.LOG,
            f"{stage}: the hash alone holds out too little of this small data; {corpus.moved} more documents are held "
            f"out to reach {HELD_OUT_TOKENS} tokens or a tenth",
            stage=stage, documents=corpus.moved,
        )  # fmt: skip

    def packed(documents: Sequence[Document], tokens: int) -> Packed:
        return pack(documents, tokenizer, sequence_tokens, max_tokens=tokens, seed=seed)

    documents = [*corpus.train, *more]
    if general_ratio is None:
        train = packed(documents, max_tokens)
    else:
        train = _mixed(stage, documents, packed, max_tokens, general_ratio, seed, context)
    watched = min(_WATCHED_TOKENS, max(_FEWEST_WATCHED_TOKENS, int(_WATCHED_SHARE * max_tokens)))
    held_out = packed(corpus.held_out, watched)
    largest = max(int(train.ids_NS.max()), int(held_out.ids_NS.max()))
    if largest >= vocabulary:
        raise DamagedCheckpoint(
            f"the tokenizer gives token {largest}, but the teacher's embedding has {vocabulary} rows; "
            "the tokenizer beside the teacher is not its own: save the right one there",
            pointer="/teacher",
        )
    return Texts(train, held_out)


def _mixed(
    stage: StageName, documents: Sequence[Document], packed: Callable[[Sequence[Document], int], Packed],
    max_tokens: int, ratio: float, seed: int, context: RunContext,
) -> Packed:  # fmt: skip
    """Domain text, and as much general text as the ratio asks for beside it; an epoch reads both once."""
    domain = [document for document in documents if not document.general]
    general = [document for document in documents if document.general]
    for kind, found in (("domain", domain), ("general", general if ratio else domain)):
        if not found:
            raise InvalidData(
                f"{stage}.general_ratio is {ratio}, but the data has no {kind} text to train on; general text is what "
                'has "general": true in its line. Add some, or leave general_ratio out',
                pointer=f"/{stage}/general_ratio",
            )
    of_domain = packed(domain, round((1 - ratio) * max_tokens))
    if not ratio:
        return of_domain
    wanted_rows = max(1, round(len(of_domain) * ratio / (1 - ratio)))
    of_general = packed(general, wanted_rows * of_domain.sequence_tokens)
    share = len(of_general) / (len(of_general) + len(of_domain))
    message = f"{stage}: {share:.0%} of the text is general"
    if len(of_general) < wanted_rows:
        message += f", less than the {ratio:.0%} asked for: the data has no more of it"
        context.report(EventType.WARNING, message, level="warning", stage=stage, general_ratio=share)
    else:
        context.report(EventType.LOG, message, stage=stage, general_ratio=share)
    return mix([of_domain, of_general], seed)
