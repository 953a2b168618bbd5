"""The customer's text as packed sequences of tokens.

Documents are split into train and held-out by the hash of their key, encoded, and packed into rows of one length.
Positions restart at every document, which is how transformers knows that attention must not cross from one to the next.

N: rows, S: tokens of a row, B: rows of a batch.
"""

import hashlib
import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from foundry.engine.encode import Encoded, encode
from foundry.engine.packed import Packed
from foundry.errors import InvalidData
from foundry.intake.documents import Document, is_held_out, read_documents

HELD_OUT_TOKENS = 4096
"""With fewer held-out tokens than this a loss says little; a small corpus gives a tenth of its tokens instead."""
_LARGEST_TEXT = 2**30
"""Characters that are held in memory, some 250 million tokens; of a larger file an even sample is used."""
_LEAST_TRAIN_TOKENS = 64
_LEAST_PART = 8
"""Tokens of room at the end of a row that are worth starting a piece of text in."""
_LEAST_DOCUMENTS = 32
"""A sample of a corpus takes at most this fraction of itself from one document."""


@dataclass(frozen=True)
class Corpus:
    """Documents of both sides, each in the order of the seed."""

    train: Sequence[Document]
    held_out: Sequence[Document]
    moved: int
    """Documents that were moved from train to held-out because the hash alone gave too few."""
    share: float
    """Of the documents that were kept; below 1 where the file is larger than memory should hold."""

    @classmethod
    def load(
        cls, path: Path | str, tokenizer: PreTrainedTokenizerBase, *, seed: int, held_out_share: float = 0.05
    ) -> "Corpus":
        """Read, split and order the documents. Raises `InvalidData` when there is too little text for two sides.

        Documents with one key stay on one side. General text is not held out: what is measured is the domain.
        """
        documents, share = _read_what_fits(Path(path))
        held_out = [d for d in documents if not d.general and is_held_out(d.key, held_out_share)]
        train = [d for d in documents if d.general or not is_held_out(d.key, held_out_share)]
        chosen = _keys_to_move([document for document in train if not document.general], held_out, tokenizer)
        moved = [document for document in train if document.key in chosen]
        train = [document for document in train if document.key not in chosen]
        if not held_out and not moved:
            raise InvalidData(
                f"the data has {len(train)} document(s), too few to hold some out to measure on; give more: one JSON "
                "line each, or separated by a line <|endoftext|> in a text file"
            )
        if _count_tokens(train, tokenizer, _LEAST_TRAIN_TOKENS) < _LEAST_TRAIN_TOKENS:
            raise InvalidData(f"fewer than {_LEAST_TRAIN_TOKENS} tokens are left to train on; give more text")
        return cls(_in_order(train, seed), _in_order([*held_out, *moved], seed), len(moved), share)


def _read_what_fits(path: Path) -> tuple[list[Document], float]:
    """The documents, or a sample by hash of at most `_LARGEST_TEXT` characters, and the share that the sample is."""
    documents: list[Document] = []
    size, share = 0, 1.0
    for document in read_documents(path):
        if share < 1 and not is_held_out(f"keep:{document.key}", share):
            continue
        documents.append(document)
        size += _characters(document)
        while size > _LARGEST_TEXT:
            share /= 2
            documents = [kept for kept in documents if is_held_out(f"keep:{kept.key}", share)]
            size = sum(map(_characters, documents))
    return documents, share


def _characters(document: Document) -> int:
    turns = sum(len(message.content) for message in document.messages or ())
    return len(document.text or "") + len(document.prompt or "") + len(document.completion or "") + turns


def _keys_to_move(
    train: Sequence[Document], held_out: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> frozenset[str]:
    """Keys with the smallest hashes until the held-out side has enough; train keeps at least half of its tokens."""
    have = _count_tokens(held_out, tokenizer, HELD_OUT_TOKENS)
    if have >= HELD_OUT_TOKENS:
        return frozenset()
    train_tokens = _count_tokens(train, tokenizer, 10 * HELD_OUT_TOKENS)
    need, spare = min(HELD_OUT_TOKENS, (have + train_tokens) // 10), train_tokens // 2
    by_key: dict[str, list[Document]] = {}
    for document in train:
        by_key.setdefault(document.key, []).append(document)
    chosen: set[str] = set()
    for key in sorted(by_key, key=_hash_of):
        if have >= need and (have or chosen):
            break
        tokens = _count_tokens(by_key[key], tokenizer, spare + 1)
        if tokens <= spare:
            chosen.add(key)
            have, spare = have + tokens, spare - tokens
    return frozenset(chosen)


def _count_tokens(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, enough: int) -> int:
    """Tokens of the documents; stops counting at `enough`."""
    total = 0
    for encoded in encode(documents, tokenizer):
        total += len(encoded.ids_T)
        if total >= enough:
            break
    return total


def _hash_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _in_order(documents: Iterable[Document], seed: int) -> list[Document]:
    """Shuffled by hash, so that the order depends on seed and keys alone, not on the order of the file."""
    return sorted(documents, key=lambda document: _hash_of(f"{seed}:{document.key}"))


def pack(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, sequence_tokens: int, *,
    max_tokens: int | None = None, seed: int | None = None,
) -> Packed:  # fmt: skip
    """Pack documents into rows of `sequence_tokens`, at most about `max_tokens` in all; shuffle the rows by `seed`.

    Raises `InvalidData` when no token counts.
    """
    pieces = _take(documents, tokenizer, sequence_tokens, max_tokens)
    rows = _run_on([p for p in pieces if p.may_be_cut], sequence_tokens)
    rows += _best_fit([p for p in pieces if not p.may_be_cut], sequence_tokens)
    if seed is not None:
        random.Random(f"rows:{seed}").shuffle(rows)
    if max_tokens is not None:
        rows = rows[: max(1, max_tokens // sequence_tokens)]
    packed = _fill(rows, sequence_tokens, tokenizer)
    if not packed.counted_tokens:
        raise InvalidData(
            "no token of the data counts for the loss: every document is a prompt, or empty, or one token"
        )
    return packed


def _take(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, sequence_tokens: int, max_tokens: int | None
) -> list[Encoded]:
    """Pieces of at most a row until there are enough; a document gives more than its share only when others run out."""
    share = len(range(0, max_tokens, sequence_tokens * _LEAST_DOCUMENTS)) if max_tokens is not None else None
    pieces: list[Encoded] = []
    reserve: list[Encoded] = []
    taken = 0
    for encoded in encode(documents, tokenizer):
        cuts = range(0, len(encoded.ids_T), sequence_tokens)
        parts = [encoded.part(start, start + sequence_tokens) for start in cuts]
        pieces += parts[:share]
        taken += sum(len(part.ids_T) for part in parts[:share])
        reserve += parts[share:] if share is not None else []
        if max_tokens is not None and taken >= max_tokens:
            return pieces
    while reserve and max_tokens is not None and taken < max_tokens:
        pieces.append(reserve.pop(0))
        taken += len(pieces[-1].ids_T)
    return pieces


def _run_on(pieces: Iterable[Encoded], sequence_tokens: int) -> list[list[Encoded]]:
    """One piece after the other, cut where a row is full; the rest goes on in the next row as a document of its own."""
    rows: list[list[Encoded]] = []
    free = 0
    for piece in pieces:
        start = 0
        while len(piece.ids_T) - start > 1:  # a single token predicts nothing
            if free < _LEAST_PART:
                rows.append([])
                free = sequence_tokens
            part = piece.part(start, start + free)
            rows[-1].append(part)
            start, free = start + len(part.ids_T), free - len(part.ids_T)
    return rows


def _best_fit(pieces: Sequence[Encoded], sequence_tokens: int) -> list[list[Encoded]]:
    """Whole pieces, longest first, each into the row that it fills most."""
    rows: list[list[Encoded]] = []
    open_rows: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for piece in sorted(pieces, key=lambda piece: -len(piece.ids_T)):
        length = len(piece.ids_T)
        at = bisect_left(open_rows, (length, 0))
        if at == len(open_rows):
            free, row = sequence_tokens, len(rows)
            rows.append([])
        else:
            free, row = open_rows.pop(at)
        rows[row].append(piece)
        if free > length:
            insort(open_rows, (free - length, row))
    return rows


def _fill(rows: Sequence[Sequence[Encoded]], sequence_tokens: int, tokenizer: PreTrainedTokenizerBase) -> Packed:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    ids_NS = np.full((len(rows), sequence_tokens), padding, dtype=np.int32)
    positions_NS = np.zeros((len(rows), sequence_tokens), dtype=np.int32)
    targets_NS = np.zeros((len(rows), sequence_tokens), dtype=bool)
    documents_NS = np.zeros((len(rows), sequence_tokens), dtype=np.int32)
    document_bytes: Counter[int] = Counter()
    for row, members in enumerate(rows):
        start = 0
        for piece in members:
            end = start + len(piece.ids_T)
            ids_NS[row, start:end] = piece.ids_T
            positions_NS[row, start:end] = np.arange(end - start)
            targets_NS[row, start : end - 1] = piece.counted_T[1:]
            documents_NS[row, start:end] = piece.document
            document_bytes[piece.document] += int(piece.bytes_T[1:][piece.counted_T[1:]].sum())
            start = end
    return Packed(
        torch.from_numpy(ids_NS), torch.from_numpy(positions_NS), torch.from_numpy(targets_NS),
        bytes=document_bytes.total(), documents_NS=torch.from_numpy(documents_NS), document_bytes=document_bytes,
    )  # fmt: skip
