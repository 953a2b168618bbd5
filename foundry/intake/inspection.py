"""What a data file holds, found in one pass over its documents; and some of them for people to look at."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from foundry.intake.documents import Document, is_held_out, read_documents
from foundry.spec.library import DatasetReport, DatasetRow

_FEW_DOCUMENTS = 200
_MANY_DUPLICATES_RATIO = 0.05
_KNOWN_KEYS = 1_000_000
"""Keys of documents that are kept in memory to find duplicates among."""


def inspect(path: Path, dataset_id: str = "") -> DatasetReport:
    """Read every document of a file; raise `InvalidData` with the line at the first that is wrong."""
    kinds: Counter[str] = Counter()
    seen: set[str] = set()
    characters = longest = duplicates = held_out = 0
    for document in read_documents(path):
        length = _characters(document)
        kinds[_kind(document)] += 1
        characters += length
        longest = max(longest, length)
        held_out += is_held_out(document.key)
        duplicates += document.key in seen
        if len(seen) < _KNOWN_KEYS:
            seen.add(document.key)
    count = kinds.total()
    return DatasetReport(
        dataset_id=dataset_id, documents=count, text_documents=kinds["text"],
        completion_documents=kinds["completion"], chat_documents=kinds["chat"], characters=characters,
        longest_characters=longest, duplicate_documents=duplicates, held_out_documents=held_out,
        warnings=tuple(_warnings(count, kinds, duplicates, held_out)),
    )  # fmt: skip


def preview(path: Path, skip: int, count: int, characters: int) -> list[DatasetRow]:
    """`count` documents after the first `skip`, each text cut to so many characters."""
    documents = islice(read_documents(path), skip, skip + count)
    return [_row(number, document, characters) for number, document in enumerate(documents, start=skip + 1)]


def _row(number: int, document: Document, most: int) -> DatasetRow:
    def cut(text: str | None) -> str | None:
        return text if text is None else text[:most]

    turns = document.messages or ()
    messages = tuple({"role": str(turn.role), "content": turn.content[:most]} for turn in turns) or None
    parts = [document.text, document.prompt, document.completion, *(turn.content for turn in turns)]
    return DatasetRow(
        number=number, key=document.key, held_out=is_held_out(document.key), text=cut(document.text),
        prompt=cut(document.prompt), completion=cut(document.completion), messages=messages,
        is_cut=any(len(part) > most for part in parts if part is not None),
    )  # fmt: skip


def _kind(document: Document) -> str:
    if document.messages is not None:
        return "chat"
    return "text" if document.text is not None else "completion"


def _characters(document: Document) -> int:
    texts = (document.text, document.prompt, document.completion, *(m.content for m in document.messages or ()))
    return sum(len(text) for text in texts if text is not None)


def _warnings(count: int, kinds: Counter[str], duplicates: int, held_out: int) -> Iterator[str]:
    if count < _FEW_DOCUMENTS:
        yield f"only {count:,} documents: figures on {held_out:,} held-out documents say little"
    if not held_out:
        yield "no document falls on the held-out side, so nothing can be measured on it: give more documents"
    if duplicates > _MANY_DUPLICATES_RATIO * count:
        yield f"{duplicates:,} documents were there before, by id or content: remove them"
    if len(kinds) > 1:
        yield f"mixes documents of the kinds {', '.join(sorted(kinds))}"
