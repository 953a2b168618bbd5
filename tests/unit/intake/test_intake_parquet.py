"""Parquet as data: the same documents as from JSON Lines, and nothing but a clear refusal from what is damaged."""

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from foundry.errors import InvalidData
from foundry.intake import parquet as reader
from foundry.intake.documents import MAX_LINE_BYTES, read_documents, summarise

TURNS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "one", "general": True},
    {"id": "7", "prompt": "two?", "completion": "two!"},
    {"id": "c", "messages": TURNS},
    {"text": "é"},
]


def _write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows, **options), path, row_group_size=3)
    return path


def test_documents_are_those_of_the_same_rows_as_json_lines(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("id", pa.large_string()), ("text", pa.string()), ("general", pa.bool_()), ("prompt", pa.string()),
            ("completion", pa.string()), ("source", pa.int32()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())]))),
        ]
    )  # fmt: skip
    lines = tmp_path / "data.jsonl"
    lines.write_text("\n".join(map(json.dumps, ROWS)))
    columns = _write(tmp_path / "any-name", ROWS, schema=schema)
    assert list(read_documents(columns)) == list(read_documents(lines))
    assert (summarise(columns).format, summarise(columns).documents) == ("parquet", 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": 1, "body": "a"}], "the columns are 'label', 'body'; give one named text"),
        ([{"text": "a"}, {"text": "  "}], 'row 2: "text" is empty'),
        ([{"text": "a"}, {"text": None}], "row 2: has the fields none; give exactly one"),
        ([{"text": 5}], 'row 1: "text" is a number instead of text'),
        ([{"text": b"a"}], 'row 1: "text" is bytes instead of text'),
        ([{"prompt": "a"}], 'row 1: "completion" is missing'),
        ([{"text": "a" * (MAX_LINE_BYTES + 1)}], "row 1: longer than"),
    ],
    ids=["no known column", "empty", "null", "number", "bytes", "half a pair", "too long"],
)
def test_wrong_rows_are_named_with_the_way_out(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidData, match=message):
        list(read_documents(_write(tmp_path / "data.parquet", rows)))


def test_a_file_that_only_has_the_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_text('{"text": "a"}')
    with pytest.raises(InvalidData, match=r"no sound Parquet file.*write it again"):
        list(read_documents(path))


def test_a_row_group_that_unpacks_to_too_much_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_LARGEST_GROUP_BYTES", 2000)
    path = tmp_path / "data.parquet"
    parquet.write_table(pa.Table.from_pylist([{"text": "a" * 3000}]), path, write_statistics=False)
    assert path.stat().st_size < 2000  # it is packed
    with pytest.raises(InvalidData, match=r"row group 0 has .* bytes of 'text'.*smaller row groups"):
        list(read_documents(path))


_SOUND = io.BytesIO()
parquet.write_table(pa.Table.from_pylist([{"text": f"document {n}"} for n in range(50)]), _SOUND)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(_SOUND.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(raw)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.parquet"
        path.write_bytes(raw[:cut] if data.draw(st.booleans()) else raw)
        try:
            assert len(list(read_documents(path))) <= 50
        except InvalidData as error:
            assert str(error)
