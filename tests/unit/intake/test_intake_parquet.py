"""Parquet as data: the same documents as from JSON Lines, and nothing but a clear refusal from what is damaged."""

import io
import json
import os
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from foundry.errors import InvalidData
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
        ([{"text": 5}], "the column 'text' holds int64; it has to hold text"),
        ([{"text": "a", "id": datetime(2262, 1, 1)}], r"the column 'id' holds timestamp\[us\].*text or whole numbers"),
        ([{"messages": [{"role": 1, "content": "a"}]}], "the column 'messages' holds list.*lists of role and content"),
        ([{"prompt": "a"}], 'row 1: "completion" is missing'),
        ([{"text": "a" * (MAX_LINE_BYTES + 1)}], "row 1: longer than"),
    ],
    ids=["no known column", "empty", "null", "number", "date", "no role", "half a pair", "too long"],
)
def test_wrong_rows_are_named_with_the_way_out(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidData, match=message):
        list(read_documents(_write(tmp_path / "data.parquet", rows)))


def test_a_file_that_only_has_the_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_text('{"text": "a"}')
    with pytest.raises(InvalidData, match=r"no sound Parquet file.*write it again"):
        list(read_documents(path))


def test_a_small_file_that_unpacks_to_much_is_given_up_early(tmp_path: Path) -> None:
    one = pa.array(["a" * 2**20]).dictionary_encode()
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), one.dictionary)
    path = tmp_path / "data.parquet"
    parquet.write_table(pa.table({"text": texts}), path, compression="zstd", write_statistics=False)
    assert path.stat().st_size < 10_000  # for 100 GiB
    with pytest.raises(InvalidData, match=r"unpacks to more than 1000 times its size by row [67][0-9];"):
        list(read_documents(path))


def test_rows_that_take_all_memory_end_the_reader_alone(tmp_path: Path) -> None:
    one = pa.array(["a" * 2**27]).dictionary_encode()
    path = tmp_path / "data.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), one.dictionary)
    parquet.write_table(pa.table({"text": texts}), path, compression="zstd", write_statistics=False)
    with pytest.raises(InvalidData, match="no row after 0 could be read in 2 GiB of memory"):
        list(read_documents(path))


def test_a_signal_to_the_process_group_does_not_reach_the_reader_and_closing_ends_it(tmp_path: Path) -> None:
    """A supervisor or a terminal that stops a run must not make it look as if the data were damaged."""
    before = psutil.Process().children()  # other tests may have left some
    rows = read_documents(_write(tmp_path / "data.parquet", [{"text": "a" * 100_000}] * 40))
    next(rows)  # the pipe is full, so the reader waits
    (reader,) = set(psutil.Process().children()) - set(before)
    assert os.getpgid(reader.pid) != os.getpgid(0)
    rows.close()  # type: ignore[attr-defined]
    assert not reader.is_running()


_SOUND = io.BytesIO()
parquet.write_table(pa.Table.from_pylist([{"text": f"document {n}"} for n in range(50)]), _SOUND)


@settings(max_examples=8, deadline=None)  # each starts a process
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
