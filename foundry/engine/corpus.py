"""The customer's text as packed sequences of tokens.

Documents are split into train and held-out by the hash of their key, encoded with a mask of the tokens that count for
the loss (all of a text, the completion of a prompt, the answers of a chat), and packed into rows of one length.
Positions restart at every document, which is how transformers knows that attention must not cross from one to the next.

N: rows, S: tokens of a row, B: rows of a batch, T: tokens of a document.
"""

import hashlib
import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from foundry.errors import InvalidData
from foundry.intake.documents import Document, is_held_out, read_documents

HELD_OUT_TOKENS = 4096
"""With fewer held-out tokens than this a loss says little; a small corpus gives a tenth of its tokens instead."""
_LEAST_TRAIN_TOKENS = 64
_LEAST_DOCUMENTS = 32
"""A sample of a corpus takes at most this fraction of itself from one document."""


class Encoded(NamedTuple):
    """One document as tokens."""

    ids_T: np.ndarray
    counted_T: np.ndarray
    """Whether predicting this token counts."""
    bytes_T: np.ndarray
    """UTF-8 bytes of text that this token adds; 0 for special tokens."""


class Batch(NamedTuple):
    """Some rows on a device."""

    ids_BS: torch.Tensor
    positions_BS: torch.Tensor
    targets_BS: torch.Tensor

    def model_inputs(self) -> dict[str, Any]:
        """Arguments for a transformers model or trunk: restarting positions keep documents apart, a cache would not."""
        return {"input_ids": self.ids_BS, "position_ids": self.positions_BS, "use_cache": False}

    @property
    def labels_BS(self) -> torch.Tensor:
        """The next token at each position; meaningless where `targets_BS` is False."""
        return self.ids_BS.roll(-1, dims=1)


@dataclass(frozen=True)
class Packed:
    """Rows of tokens. Long documents are cut into rows; shorter ones share a row and are never cut."""

    ids_NS: torch.Tensor
    positions_NS: torch.Tensor
    """Position within the document; 0 in the padding, so that each padding token is a document of its own."""
    targets_NS: torch.Tensor
    """True where predicting token t + 1 from t counts: same document, not padding, not prompt."""
    bytes: int
    """UTF-8 bytes of the text of all counted tokens."""

    def __len__(self) -> int:
        return self.ids_NS.shape[0]

    @property
    def sequence_tokens(self) -> int:
        return self.ids_NS.shape[1]

    @property
    def counted_tokens(self) -> int:
        """How many predictions count."""
        return int(self.targets_NS.sum())

    def batch(self, rows: Sequence[int] | slice, device: torch.device | str = "cpu") -> Batch:
        """These rows on a device, ids and positions as int64."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        ids_BS, positions_BS = self.ids_NS[index].long(), self.positions_NS[index].long()
        return Batch(*(t.to(device, non_blocking=True) for t in (ids_BS, positions_BS, self.targets_NS[index])))

    def batches(self, batch_rows: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """All rows in order."""
        for start in range(0, len(self), batch_rows):
            yield self.batch(slice(start, start + batch_rows), device)


@dataclass(frozen=True)
class Corpus:
    """Documents of both sides, each in the order of the seed."""

    train: Sequence[Document]
    held_out: Sequence[Document]
    moved: int
    """Documents that were moved from train to held-out because the hash alone gave too few."""

    @classmethod
    def load(
        cls, path: Path | str, tokenizer: PreTrainedTokenizerBase, *, seed: int, held_out_share: float = 0.05
    ) -> "Corpus":
        """Read, split and order the documents. Raises `InvalidData` when there is too little text for two sides.

        Documents with one key stay on one side.
        """
        train: list[Document] = []
        held_out: list[Document] = []
        for document in read_documents(Path(path)):
            (held_out if is_held_out(document.key, held_out_share) else train).append(document)
        chosen = _keys_to_move(train, held_out, tokenizer)
        moved = [document for document in train if document.key in chosen]
        train = [document for document in train if document.key not in chosen]
        if not held_out and not moved:
            raise InvalidData(
                f"the data has {len(train)} document(s) with one key, but some must be held out to measure on; give at "
                "least two: one JSON line each, or separated by a line <|endoftext|> in a text file"
            )
        if _count_tokens(train, tokenizer, _LEAST_TRAIN_TOKENS) < _LEAST_TRAIN_TOKENS:
            raise InvalidData(f"fewer than {_LEAST_TRAIN_TOKENS} tokens are left to train on; give more text")
        return cls(_in_order(train, seed), _in_order([*held_out, *moved], seed), len(moved))


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


def encode(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """Each document as tokens, its end marked by EOS where the tokenizer has one."""
    for document in documents:
        yield _encode(document, tokenizer)


def _encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    text, spans = _render(document, tokenizer)
    # A chat template writes its own special tokens; everything else gets the tokenizer's.
    tokens = tokenizer(
        text, add_special_tokens=document.messages is None, return_offsets_mapping=True, return_attention_mask=False,
        verbose=False,
    )  # fmt: skip
    ids_T = np.asarray(tokens["input_ids"], dtype=np.int32)
    offsets = np.asarray(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    starts_T, ends_T = offsets[:, 0], offsets[:, 1]
    # A token on the border of prompt and answer holds some of the answer, so it counts.
    counted_T = np.zeros(len(ids_T), dtype=bool)
    for start, end in spans:
        counted_T |= (starts_T < end) & (ends_T > start)
    # A character may take several tokens that all report its offsets: only the first of them adds its bytes.
    reach_T = np.maximum.accumulate(ends_T, dtype=np.int64)
    bytes_T = np.diff(_bytes_before(text)[reach_T], prepend=0)
    end_id = tokenizer.eos_token_id
    if end_id is not None and not (len(ids_T) and ids_T[-1] == end_id):
        ids_T, counted_T, bytes_T = (
            np.append(ids_T, np.int32(end_id)),
            np.append(counted_T, True),
            np.append(bytes_T, 0),
        )
    return Encoded(ids_T, counted_T, bytes_T)


def _bytes_before(text: str) -> np.ndarray:
    """UTF-8 bytes of `text[:i]` for every i from 0 to its length."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])


def _render(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """The document as text, and the character spans that count for the loss."""
    if document.text is not None:
        return document.text, [(0, len(document.text))]
    if document.messages is not None:
        return _render_chat(document, tokenizer)
    prompt, completion = document.prompt or "", document.completion or ""
    return prompt + completion, [(len(prompt), len(prompt) + len(completion))]


def _render_chat(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """A chat through the tokenizer's own template (which transformers runs in a sandbox); the answers count.

    An answer is what the template adds to the conversation before it. Templates that rewrite earlier turns have no such
    prefix; there the answer's own text is looked for.
    """
    if not tokenizer.chat_template:
        raise InvalidData(
            "the data holds chats (`messages`) but the teacher's tokenizer has no chat template; give documents as "
            "{prompt, completion} or {text}, or save a chat_template.jinja beside the teacher"
        )
    messages = [{"role": message.role, "content": message.content} for message in document.messages or ()]
    try:
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
        spans: list[tuple[int, int]] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = str(tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True))
            after = str(tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False))
            spans.append(_answer_span(whole, before, after, message["content"], spans[-1][1] if spans else 0))
    except TemplateError as error:
        raise InvalidData(f"the teacher's chat template refuses document {document.key}: {error}") from error
    return whole, spans


def _answer_span(whole: str, before: str, after: str, answer: str, start: int) -> tuple[int, int]:
    if after.startswith(before) and whole.startswith(after):
        return len(before), len(after)
    found = whole.find(answer.strip(), start)
    return (found, found + len(answer.strip())) if found >= 0 else (start, start)


def pack(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, sequence_tokens: int, *,
    max_tokens: int | None = None, seed: int | None = None,
) -> Packed:  # fmt: skip
    """Pack documents into rows of `sequence_tokens`, at most about `max_tokens` in all; shuffle the rows by `seed`.

    Raises `InvalidData` when no token counts.
    """
    pieces = _take(documents, tokenizer, sequence_tokens, max_tokens)
    rows = _assign_rows([len(piece.ids_T) for piece in pieces], sequence_tokens)
    if max_tokens is not None:
        rows = rows[: max(1, max_tokens // sequence_tokens)]
    if seed is not None:
        random.Random(f"rows:{seed}").shuffle(rows)
    packed = _fill(rows, pieces, sequence_tokens, tokenizer)
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
        parts = [Encoded(*(part[start : start + sequence_tokens] for part in encoded)) for start in cuts]
        pieces += parts[:share]
        taken += sum(len(part.ids_T) for part in parts[:share])
        reserve += parts[share:] if share is not None else []
        if max_tokens is not None and taken >= max_tokens:
            return pieces
    while reserve and max_tokens is not None and taken < max_tokens:
        pieces.append(reserve.pop(0))
        taken += len(pieces[-1].ids_T)
    return pieces


def _assign_rows(lengths: Sequence[int], sequence_tokens: int) -> list[list[int]]:
    """Best fit, longest first: each piece goes to the row that it fills most; returns the pieces of every row."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        length = lengths[piece]
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


def _fill(
    rows: Sequence[Sequence[int]], pieces: Sequence[Encoded], sequence_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> Packed:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    ids_NS = np.full((len(rows), sequence_tokens), padding, dtype=np.int32)
    positions_NS = np.zeros((len(rows), sequence_tokens), dtype=np.int32)
    targets_NS = np.zeros((len(rows), sequence_tokens), dtype=bool)
    counted_bytes = 0
    for row, members in enumerate(rows):
        start = 0
        for piece in members:
            ids_T, counted_T, bytes_T = pieces[piece]
            end = start + len(ids_T)
            ids_NS[row, start:end] = ids_T
            positions_NS[row, start:end] = np.arange(len(ids_T))
            targets_NS[row, start : end - 1] = counted_T[1:]
            counted_bytes += int(bytes_T[1:][counted_T[1:]].sum())
            start = end
    return Packed(torch.from_numpy(ids_NS), torch.from_numpy(positions_NS), torch.from_numpy(targets_NS), counted_bytes)
