"""Training text as a stream of documents. Nothing is trusted: lines, documents and the file have a largest size.

A file whose first character that is not white space is `{` is JSON Lines, and so is one named .jsonl, .ndjson or .json.
Each line is one object of one of three kinds, with an optional "id", an optional "general" (true for text that is not
of the domain) and any other fields, which are ignored:

    {"text": "..."}
    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

A file that begins with `PAR1` is Parquet, with columns named as those fields; cells without a value do not count.

Everything else is plain text: documents between lines `<|endoftext|>`, or, where the file has no such line, paragraphs
(text between blank lines) joined until a document holds 2,000 characters.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args

from foundry.errors import InvalidData
from foundry.intake import parquet
from foundry.spec.resources import DataFormat

Role = Literal["system", "user", "assistant", "tool"]
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIX_OF: Mapping[DataFormat, str] = {"jsonl": ".jsonl", "text": ".txt", "parquet": parquet.SUFFIX}
"""How a file of each format is called, so that it is read as that."""
SEPARATOR = "<|endoftext|>"
MAX_LINE_BYTES = 16 * 2**20
MAX_BYTES = 10**12
MAX_DOCUMENTS = 10**9
_PARAGRAPHS_CHARACTERS = 2000
_LONGEST_PARAGRAPH_CHARACTERS = 65_536
_BOM = b"\xef\xbb\xbf"


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Role
    content: str


class Document(NamedTuple):
    """One independent piece of text: `text` alone, or `prompt` and `completion`, or `messages`; the others are None."""

    key: str
    """The id, else the digest of the content. Decides on which side of the held-out split the document falls."""
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] | None = None
    general: bool = False
    """Not of the domain: trained on in the ratio that a stage asks for, never measured on."""


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What a whole file holds, after every document in it was checked."""

    format: DataFormat
    documents: int
    bytes: int
    sha256: str
    """Of the file's bytes."""


def is_held_out(key: str, share: float = 0.05) -> bool:
    """Whether a document is kept for evaluation: the same answer on every machine, whatever else the data holds."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64


def summarise(path: Path) -> DatasetSummary:
    """Check every document of a file; raise `InvalidData` with the line, or row, at the first that is wrong."""
    documents = sum(1 for _ in read_documents(path))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return DatasetSummary(format=format_of(path), documents=documents, bytes=path.stat().st_size, sha256=sha256)


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a file, in order.

    Raises `InvalidData` with the line at the first wrong one, or the row, or when there is none.
    """
    read = _READERS[format_of(path)]
    count = 0
    for document in read(path):
        count += 1
        if count > MAX_DOCUMENTS:
            raise InvalidData(f"more than {MAX_DOCUMENTS:,} documents; split the file")
        yield document
    if not count:
        raise InvalidData(f"{path.name} holds no documents; give at least one line such as " + '{"text": "..."}')


def format_of(path: Path) -> DataFormat:
    """By name or first characters; raise `InvalidData` for a missing, empty or too large file."""
    if not path.is_file():
        raise InvalidData(
            f"no data file at {path}; give a .jsonl, .parquet or .txt file, or the id of an uploaded dataset"
        )
    size = path.stat().st_size
    if not size:
        raise InvalidData(f"{path.name} is empty; give at least one line such as " + '{"text": "..."}')
    if size > MAX_BYTES:
        raise InvalidData(f"{path.name} has {size:,} bytes, more than {MAX_BYTES:,}; split the file")
    if path.suffix.lower() in JSONL_SUFFIXES:
        return "jsonl"
    with path.open("rb") as file:
        first = file.read(4096)
    if first.startswith(parquet.MAGIC) or path.suffix.lower() == parquet.SUFFIX:
        return "parquet"
    return "jsonl" if first.removeprefix(_BOM).lstrip().startswith(b"{") else "text"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, decoded strictly, without its end."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise InvalidData(f"longer than {MAX_LINE_BYTES:,} bytes; split it into several documents", line=number)
            if number == 1:
                raw = raw.removeprefix(_BOM)
            try:
                yield number, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InvalidData(
                    f"byte 0x{raw[error.start]:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8",
                    line=number,
                ) from error


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise InvalidData("nested too deeply; a document is a flat object", line=number) from error
        except ValueError as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise InvalidData(
                f"not valid JSON ({why}); JSON Lines has one complete object on each line", line=number
            ) from error
        try:
            yield _document(row)
        except ValueError as error:
            raise InvalidData(str(error), line=number) from error


def _read_parquet(path: Path) -> Iterator[Document]:
    for number, row in parquet.read_rows(path, MAX_LINE_BYTES):
        try:
            yield _document(row)
        except ValueError as error:
            raise InvalidData(f"row {number}: {error}") from error


def _document(row: Any) -> Document:
    """Check one row; raise `ValueError` saying what is wrong and what is right."""
    if not isinstance(row, dict):
        raise ValueError(f'{_kind(row)} instead of an object such as {{"text": "..."}}')
    kinds = [kind for kind in ("text", "prompt", "messages") if kind in row]
    if len(kinds) != 1:
        has = (
            f"has {' and '.join(map(repr, kinds))}"
            if kinds
            else f"has the fields {', '.join(map(repr, list(row)[:8])) or 'none'}"
        )
        raise ValueError(f'{has}; give exactly one of "text", "prompt" with "completion", or "messages"')
    if kinds[0] == "text":
        content: dict[str, Any] = {"text": _string(row, "text")}
    elif kinds[0] == "prompt":
        content = {"prompt": _string(row, "prompt"), "completion": _string(row, "completion")}
    else:
        content = {"messages": _messages(row["messages"])}
    return Document(key=_key(row.get("id"), content), general=row.get("general") is True, **content)


def _string(row: dict[str, Any], field: str) -> str:
    if field not in row:
        raise ValueError(f'"{field}" is missing')
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f'"{field}" is {_kind(value)} instead of text')
    if not value.strip():
        raise ValueError(f'"{field}" is empty; leave the line out')
    _require_unicode(field, value)
    return value


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('"messages" is not a list of at least one {"role": ..., "content": ...}')
    messages = []
    for place, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise ValueError(f'"messages" {place} is {_kind(turn)} instead of {{"role": ..., "content": ...}}')
        if turn.get("role") not in get_args(Role):
            raise ValueError(
                f'"messages" {place} has the role {turn.get("role")!r:.40}; the roles are {", ".join(get_args(Role))}'
            )
        try:
            messages.append(Message(turn["role"], _string(turn, "content")))
        except ValueError as error:
            raise ValueError(f'"messages" {place}: {error}') from error
    if not any(message.role == "assistant" for message in messages):
        raise ValueError('"messages" holds no turn of the assistant, so there is nothing to learn')
    return tuple(messages)


def _key(given: Any, content: dict[str, Any]) -> str:
    if given is None:
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise ValueError(f'"id" is {_kind(given)} instead of text or a whole number')
    _require_unicode("id", str(given))
    return str(given)


def _require_unicode(field: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f'"{field}" holds half a surrogate pair ({value[error.start]!r}), which is no character'
        ) from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_text(path: Path) -> Iterator[Document]:
    separated = any(line == SEPARATOR for _, line in _lines(path))
    return _separated(path) if separated else _paragraphs(path)


def _separated(path: Path) -> Iterator[Document]:
    held: list[str] = []
    size = 0
    for number, line in _text_lines(path):
        if line == SEPARATOR:
            yield from _text_document(held)
            held, size = [], 0
            continue
        held.append(line)
        size += len(line) + 1
        if size > MAX_LINE_BYTES:
            raise InvalidData(
                f"the document is longer than {MAX_LINE_BYTES:,} characters; split it with {SEPARATOR}", line=number
            )
    yield from _text_document(held)


def _paragraphs(path: Path) -> Iterator[Document]:
    held: list[str] = []
    size = 0
    for _, line in _text_lines(path):
        held.append(line)
        size += len(line) + 1
        if size >= (_LONGEST_PARAGRAPH_CHARACTERS if line.strip() else _PARAGRAPHS_CHARACTERS):
            yield from _text_document(held)
            held, size = [], 0
    yield from _text_document(held)


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in _lines(path):
        if "\0" in line:
            _refuse_binary(number)
        yield number, line


def _refuse_binary(number: int) -> NoReturn:
    raise InvalidData("holds a zero byte: this is a binary file or UTF-16; save it as UTF-8 text", line=number)


def _text_document(lines: list[str]) -> Iterator[Document]:
    """None when there are only blank lines."""
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield Document(key=_key(None, {"text": text}), text=text)


_READERS: Mapping[DataFormat, Callable[[Path], Iterator[Document]]] = {
    "jsonl": _read_jsonl, "text": _read_text, "parquet": _read_parquet,
}  # fmt: skip
