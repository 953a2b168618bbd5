"""Headers that lie: every one is refused before a weight is read, and nothing but `DamagedCheckpoint` comes out."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from foundry.errors import DamagedCheckpoint
from foundry.intake.safetensors import MAX_HEADER_BYTES, read_header
from tests.checkpoints import header_of, write_raw, write_tensors

ROW = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


def _write(path: Path, header: Any, data_bytes: int = 12) -> Path:
    return write_raw(path / "model.safetensors", json.dumps(header).encode(), bytes(data_bytes))


def test_read_header_gives_place_and_size_of_each_tensor_when_honest(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "a.safetensors", {"x": (2, 3), "empty": (0, 4), "y": (5,)})
    entries = read_header(path)
    assert {name: entry.size for name, entry in entries.items()} == {"x": (2, 3), "empty": (0, 4), "y": (5,)}
    assert entries["x"].end == entries["y"].start
    assert entries["y"].end == path.stat().st_size
    assert entries["y"].end - entries["y"].start == 10


@pytest.mark.parametrize(
    ("header", "data_bytes", "message"),
    [
        pytest.param({"a": ROW, "b": ROW}, 12, "overlaps another", id="two tensors on the same bytes"),
        pytest.param({"a": ROW, "b": {**ROW, "data_offsets": [8, 20]}}, 20, "overlaps another", id="partial overlap"),
        pytest.param({"a": {**ROW, "data_offsets": [4, 16]}}, 16, "leaves a gap", id="hole in front"),
        pytest.param({"a": ROW}, 40, "the file has", id="bytes that nothing describes"),
        pytest.param({"a": ROW}, 8, "cut off", id="file cut off"),
        pytest.param({"a": {**ROW, "shape": [2, 4]}}, 12, "takes 16 bytes", id="shape larger than the span"),
        pytest.param({"a": {**ROW, "data_offsets": [12, 0]}}, 12, "offsets", id="end before start"),
        pytest.param({"a": {**ROW, "data_offsets": [-12, 0]}}, 12, "offsets", id="negative offset"),
        pytest.param({"a": {**ROW, "data_offsets": [0, 2**70]}}, 12, "offsets", id="offset beyond 64 bits"),
        pytest.param({"a": {**ROW, "data_offsets": [0.0, 12.0]}}, 12, "offsets", id="fractions as offsets"),
        pytest.param({"a": {**ROW, "shape": [True, 6]}}, 12, "shape", id="boolean as size"),
        pytest.param({"a": {**ROW, "shape": [-2, -3]}}, 12, "shape", id="negative sizes"),
        pytest.param({"a": {**ROW, "shape": [1] * 9}}, 2, "shape", id="nine dimensions"),
        pytest.param({"a": {**ROW, "dtype": "I8"}}, 12, "before quantisation", id="integers"),
        pytest.param({"a": {**ROW, "dtype": ["BF16"]}}, 12, "stored as", id="dtype of the wrong kind"),
        pytest.param({"a": {"dtype": "BF16", "shape": [2, 3]}}, 12, "exactly", id="offsets missing"),
        pytest.param({"a": {**ROW, "code": "x"}}, 12, "exactly", id="unknown key"),
        pytest.param({"a": [1]}, 12, "exactly", id="row of the wrong kind"),
        pytest.param({"__metadata__": {"format": 3}, "a": ROW}, 12, "__metadata__", id="metadata of the wrong kind"),
        pytest.param({"\ud800": ROW}, 12, "not valid JSON", id="half a surrogate pair"),
    ],
)  # fmt: skip
def test_read_header_refuses_when_it_lies(tmp_path: Path, header: Any, data_bytes: int, message: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=message) as caught:
        read_header(_write(tmp_path, header, data_bytes))
    assert caught.value.pointer == "/teacher"
    assert "model.safetensors" in caught.value.message


@pytest.mark.parametrize(
    ("raw", "length", "message"),
    [
        pytest.param(b"", 2**63, "does not fit", id="length beyond the file"),
        pytest.param(b"[]", None, "does not begin with", id="a list"),
        pytest.param(b'{"a": ', None, "not valid JSON", id="cut JSON"),
        pytest.param(b'{"a": 1, "a": 2}', None, "stands twice", id="a name twice"),
        pytest.param(b'{"\xff": 1}', None, "not valid JSON", id="invalid UTF-8"),
        pytest.param(b'{"a":' * 50_000, None, "not valid JSON", id="deep nesting"),
        pytest.param(b'{"a": ' + b"9" * 10_000 + b"}", None, "not valid JSON", id="a number of 10,000 digits"),
    ],
)  # fmt: skip
def test_read_header_refuses_when_not_a_header(tmp_path: Path, raw: bytes, length: int | None, message: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=message):
        read_header(write_raw(tmp_path / "model.safetensors", raw, b"", length))


def test_read_header_refuses_unread_when_the_header_is_huge(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse: takes no space
    with pytest.raises(DamagedCheckpoint, match="are not read"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_read_header_refuses_when_shorter_than_its_length_field(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(DamagedCheckpoint):
        read_header(path)


_OFFSET = st.integers(-3, 40) | st.sampled_from([2**31, 2**63, 2**64, True, None, 1.5, "0"])
_ROWS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F64", "F32", "F16", "BF16", "I8", "", 7]),
        "shape": st.lists(st.integers(-1, 4) | st.sampled_from([2**33, 2**63, 0.5]), max_size=4),
        "data_offsets": st.lists(_OFFSET, min_size=1, max_size=3),
    }
)
_HEADERS = st.dictionaries(st.text(max_size=4), _ROWS | st.none(), max_size=4)


@settings(max_examples=300, deadline=None)
@given(header=_HEADERS, data_bytes=st.integers(0, 48))
def test_read_header_accepts_only_what_safetensors_accepts_when_fuzzed(header: Any, data_bytes: int) -> None:
    with TemporaryDirectory() as folder:
        path = _write(Path(folder), header, data_bytes)
        try:
            entries = read_header(path)
        except DamagedCheckpoint:
            return
        with safe_open(path, framework="np") as library:
            assert set(library.keys()) == set(entries)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 400), byte=st.integers(0, 255))
def test_read_header_agrees_with_safetensors_when_one_byte_is_flipped(place: int, byte: int) -> None:
    with TemporaryDirectory() as folder:
        raw = json.dumps(header_of({"x": (2, 3), "y": (4,)})).encode()
        path = write_raw(Path(folder) / "model.safetensors", raw, bytes(20))
        content = bytearray(path.read_bytes())
        content[place % len(content)] = byte
        path.write_bytes(content)
        try:
            entries = read_header(path)
        except DamagedCheckpoint:
            return
        with safe_open(path, framework="np") as library:
            assert {name: tuple(library.get_slice(name).get_shape()) for name in library.keys()} == {  # noqa: SIM118
                name: entry.size for name, entry in entries.items()
            }
