"""Data files: what is read, and that each thing wrong is named with its line and the way out."""

import hashlib
import itertools
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.errors import InvalidData
from foundry.intake.documents import MAX_LINE_BYTES, Document, Message, is_held_out, read_documents, summarise

GOOD = '{"text": "good"}'


def _write(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _read(folder: Path, content: str | bytes, name: str = "data.jsonl") -> list[Document]:
    return list(read_documents(_write(folder, content, name)))


def test_read_documents_reads_all_three_kinds_when_mixed(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "one"},
        {"id": 7, "prompt": "two?", "completion": "two!"},
        {"id": "c", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "meta": {}},
    ]
    assert _read(tmp_path, "\n\n".join(map(json.dumps, rows))) == [
        Document(key="a", text="one"),
        Document(key="7", prompt="two?", completion="two!"),
        Document(key="c", messages=(Message("user", "x"), Message("assistant", "y"))),
    ]


def test_read_documents_gives_equal_keys_to_equal_content_when_there_is_no_id(tmp_path: Path) -> None:
    first, second, other = _read(tmp_path, '{"text": "é"}\n{"source": 1, "text": "\\u00e9"}\n{"text": "e"}\n')
    assert first.key == second.key == hashlib.sha256('{"text":"é"}'.encode()).hexdigest()
    assert other.key != first.key


def test_read_documents_tolerates_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    assert [d.text for d in _read(tmp_path, b"\xef\xbb\xbf" + f"{GOOD}\r\n{GOOD}\r\n".encode())] == ["good", "good"]
    assert [d.text for d in _read(tmp_path, b"\xef\xbb\xbfa\r\nb\r\n", "data.txt")] == ["a\nb"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("not json", "not valid JSON .* at column 1.*one complete object on each line", id="no JSON"),
        pytest.param('{"text": "cut', "not valid JSON", id="cut JSON"),
        pytest.param('{"text": "a"} {"text": "b"}', "not valid JSON", id="two objects on a line"),
        pytest.param('{"n": ' + "9" * 5000 + "}", "not valid JSON", id="a number of 5,000 digits"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep nesting"),
        pytest.param('["text"]', "a list instead of an object", id="list"),
        pytest.param('"text"', "text instead of an object", id="text"),
        pytest.param("17", "a number instead of an object", id="number"),
        pytest.param("null", "null instead of an object", id="null"),
        pytest.param('{"body": "x"}', "has the fields 'body'; give exactly one of", id="unknown fields only"),
        pytest.param("{}", "has the fields none", id="no fields"),
        pytest.param('{"text": "a", "prompt": "b"}', "has 'text' and 'prompt'", id="two kinds at once"),
        pytest.param('{"text": 5}', '"text" is a number instead of text', id="text is a number"),
        pytest.param('{"text": null}', '"text" is null instead of text', id="text is null"),
        pytest.param('{"text": ""}', '"text" is empty', id="empty text"),
        pytest.param('{"text": " \\n "}', '"text" is empty', id="only white space"),
        pytest.param('{"text": "\\ud800"}', '"text" holds half a surrogate pair', id="half a surrogate pair"),
        pytest.param('{"id": true, "text": "a"}', '"id" is true or false', id="id is true"),
        pytest.param('{"id": [1], "text": "a"}', '"id" is a list', id="id is a list"),
        pytest.param('{"id": "\\udfff", "text": "a"}', '"id" holds half', id="id holds half a pair"),
        pytest.param('{"prompt": "a"}', '"completion" is missing', id="no completion"),
        pytest.param('{"prompt": "a", "completion": ""}', '"completion" is empty', id="empty completion"),
        pytest.param('{"messages": []}', '"messages" is not a list of at least one', id="no messages"),
        pytest.param('{"messages": {"role": "user"}}', '"messages" is not a list', id="messages is an object"),
        pytest.param('{"messages": ["hi"]}', '"messages" 0 is text instead', id="message is text"),
        pytest.param(
            '{"messages": [{"role": "bot", "content": "a"}]}', "the role 'bot'; the roles are", id="unknown role"
        ),
        pytest.param('{"messages": [{"role": ["user"], "content": "a"}]}', "the role", id="role is a list"),
        pytest.param(
            '{"messages": [{"role": "assistant", "content": [{"type": "text"}]}]}',
            '"content" is a list',
            id="content parts",
        ),
        pytest.param('{"messages": [{"role": "user", "content": "a"}]}', "no turn of the assistant", id="no answer"),
    ],
)
def test_read_documents_names_line_and_way_out_when_malformed(tmp_path: Path, line: str, message: str) -> None:
    path = _write(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}\n")
    documents = read_documents(path)
    assert next(documents).text == "good"  # a stream: what is before the fault is given
    with pytest.raises(InvalidData, match=f"^line 3: .*{message}") as caught:
        next(documents)
    assert caught.value.line == 3
    assert caught.value.pointer == "/data"


@pytest.mark.parametrize("name", ["data.jsonl", "data.txt", "data"])
@pytest.mark.parametrize("content", [b"", b"\n\n \n", b"\xef\xbb\xbf\n"], ids=["empty", "blank lines", "only a mark"])
def test_read_documents_refuses_when_there_are_none(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(InvalidData, match=r'(is empty|holds no documents); give at least one line such as \{"text"'):
        _read(tmp_path, content, name)


@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_read_documents_names_byte_and_line_when_not_utf8(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidData, match="line 2: byte 0xff at column 11 is not UTF-8"):
        _read(tmp_path, f"{GOOD}\n".encode() + b'{"text": "\xff"}\n', name)


@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_read_documents_stops_reading_when_a_line_does_not_end(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, f"{GOOD}\n", name)
    with path.open("r+b") as file:
        file.truncate(300 * 2**20)  # sparse: zeros without a line end
    with pytest.raises(InvalidData, match=f"line 2: longer than {MAX_LINE_BYTES:,} bytes; split it"):
        list(read_documents(path))


def test_read_documents_says_what_to_give_when_there_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(InvalidData, match=r"no data file at .*; give a \.jsonl, \.parquet or \.txt file"):
            list(read_documents(path))


def test_read_documents_is_json_lines_by_first_character_when_the_name_does_not_say(tmp_path: Path) -> None:
    assert _read(tmp_path, f" \n{GOOD}", "9f86d081")[0].text == "good"
    with pytest.raises(InvalidData, match="line 1: not valid JSON"):
        _read(tmp_path, "{ this is prose", "data.txt")


def test_read_documents_is_strict_when_named_json_lines(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="line 1: not valid JSON"):
        _read(tmp_path, "plain prose", "data.ndjson")
    assert [d.text for d in _read(tmp_path, "plain prose", "data.md")] == ["plain prose"]


def test_read_documents_splits_text_at_separators_when_it_has_them(tmp_path: Path) -> None:
    text = "one\n\nstill one\n<|endoftext|>\n\n<|endoftext|>\ntwo <|endoftext|> two\n<|endoftext|>\n"
    assert [d.text for d in _read(tmp_path, text, "data.txt")] == ["one\n\nstill one", "two <|endoftext|> two"]


def test_read_documents_joins_paragraphs_when_text_has_no_separators(tmp_path: Path) -> None:
    paragraphs = [f"{n} " + "word " * 100 for n in range(20)]
    documents = _read(tmp_path, "\n\n".join(paragraphs), "data.txt")
    assert "\n\n".join(d.text or "" for d in documents) == "\n\n".join(paragraphs)
    assert len(documents) == 5
    assert all(len(d.text or "") >= 1900 for d in documents)


def test_read_documents_splits_at_a_line_end_when_text_has_no_blank_lines(tmp_path: Path) -> None:
    lines = ["word " * 20 for _ in range(2000)]
    documents = _read(tmp_path, "\n".join(lines), "data.txt")
    assert [len(d.text or "") < 66_000 for d in documents] == [True] * 4
    assert "\n".join(d.text or "" for d in documents) == "\n".join(lines)


def test_read_documents_refuses_when_text_is_utf16_or_binary(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"line 1: holds a zero byte.*UTF-16"):
        _read(tmp_path, "plain prose".encode("utf-16-le"), "data.txt")


def test_summarise_counts_and_hashes_the_whole_file(tmp_path: Path) -> None:
    content = f"{GOOD}\n" * 3
    summary = summarise(_write(tmp_path, content))
    assert (summary.format, summary.documents, summary.bytes) == ("jsonl", 3, len(content))
    assert summary.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_is_held_out_takes_about_its_share_and_grows_with_it() -> None:
    keys = [str(n) for n in range(4000)]
    small, large = ({k for k in keys if is_held_out(k, share)} for share in (0.05, 0.2))
    assert small < large
    assert 0.04 < len(small) / len(keys) < 0.06
    assert 0.18 < len(large) / len(keys) < 0.22
    assert not is_held_out("any", 0.0)
    assert is_held_out("any", 1.0)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "text", "prompt", "completion", "messages", "role", "content", "x"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(_JSON, min_size=1, max_size=4), ascii_only=st.booleans())
def test_read_documents_raises_nothing_but_invalid_data_when_fuzzed(rows: list[Any], ascii_only: bool) -> None:
    with TemporaryDirectory() as folder:
        raw = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode("utf-8", "surrogatepass")
        try:
            documents = _read(Path(folder), raw)
        except InvalidData:
            return
        assert documents
        for document in documents:
            parts = [document.text, document.prompt, document.completion]
            parts += [m.content for m in document.messages or ()]
            assert "".join(p for p in [document.key, *parts] if p).encode()


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=200))
def test_read_documents_raises_nothing_but_invalid_data_when_bytes_are_random(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        for name in ("data.jsonl", "data.txt", "data"):
            try:
                assert _read(Path(folder), raw, name)
            except InvalidData as error:
                assert error.message


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(_TEXT.filter(lambda t: bool(t.strip())), min_size=1, max_size=6))
def test_read_documents_gives_back_every_text_when_written_as_json_lines(texts: list[str]) -> None:
    with TemporaryDirectory() as folder:
        content = "\n".join(json.dumps({"text": text}) for text in texts)
        documents = _read(Path(folder), content)
    assert [d.text for d in documents] == texts
    for (a, b), (left, right) in zip(
        itertools.combinations(documents, 2), itertools.combinations(texts, 2), strict=True
    ):
        assert (a.key == b.key) == (left == right)
