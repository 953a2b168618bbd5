"""The header of a safetensors file, checked before a single weight is read.

    8 bytes: header length, little endian | header: JSON {name: {dtype, shape, data_offsets}} | the tensors' bytes

Whatever passes here is also accepted by the safetensors library. The reverse does not hold: its header may be larger,
and its numbers may be of any kind; ours must be floating point because nothing else can be pruned.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foundry.errors import DamagedCheckpoint

MAX_HEADER_BYTES = 32 * 2**20
"""The format allows 100 MB; JSON takes up to thirty times its length in memory, and 32 MiB hold 200,000 tensors."""
_LOOKS, _LOOK_BYTES = 64, 4096
DTYPE_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class TensorEntry(NamedTuple):
    """Where one tensor's bytes lie."""

    file: Path
    dtype: str
    """F64, F32, F16 or BF16."""
    size: tuple[int, ...]
    start: int
    """First byte, counted from the beginning of the file."""
    end: int
    """One past the last byte."""


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a file; raise `DamagedCheckpoint` unless the entries tile the bytes after the header exactly."""
    header, data_start, file_bytes = _load(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "__metadata__ is not a map from text to text")
    entries = {name: _entry(path, name, row, data_start) for name, row in header.items()}
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            what = "overlaps another" if entry.start < position else "leaves a gap before it"
            raise damaged(path, f"tensor {name!r} {what} (begins at byte {entry.start}, expected {position})")
        position = entry.end
    if position != file_bytes:
        raise damaged(path, f"the header describes {position} bytes, the file has {file_bytes}: it was cut off or grew")
    return entries


def damaged(path: Path, what: str) -> DamagedCheckpoint:
    """The error for a file that contradicts itself, with the way out."""
    return DamagedCheckpoint(f"{path.name}: {what}. Copy or download the checkpoint again", pointer="/teacher")


def _load(path: Path) -> tuple[dict[str, Any], int, int]:
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or length > file_bytes - 8:
            raise damaged(path, f"a header of {length} bytes does not fit into a file of {file_bytes}")
        if length > MAX_HEADER_BYTES:
            raise damaged(path, f"the header claims {length} bytes; more than {MAX_HEADER_BYTES} are not read")
        raw = file.read(length)
    if not raw.startswith(b"{"):
        raise damaged(path, "the header does not begin with '{'; this is not a safetensors file")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique), 8 + length, file_bytes
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"the header is not valid JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    "".join(found).encode("utf-8")  # half a surrogate pair is legal in JSON and in no other library's text
    return found


def _entry(path: Path, name: str, row: Any, data_start: int) -> TensorEntry:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, size, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise DamagedCheckpoint(
            f"{path.name}: tensor {name!r} is stored as {dtype!r:.40}; Foundry prunes {', '.join(DTYPE_BYTES)}: "
            "give the checkpoint from before quantisation",
            pointer="/teacher",
        )
    if not _are_counts(size) or len(size) > 8:
        raise damaged(path, f"tensor {name!r} has the shape {size!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(path, f"tensor {name!r} has the offsets {offsets!r:.80}")
    expected = math.prod(size) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise damaged(
            path,
            f"tensor {name!r}: {size} in {dtype} takes {expected} bytes, its offsets span {offsets[1] - offsets[0]}",
        )
    return TensorEntry(path, dtype, tuple(size), data_start + offsets[0], data_start + offsets[1])


def _are_counts(values: Any) -> bool:
    # bool is an int to Python; numbers of more than 64 bits are an attack, not a size.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def look_equal(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors have one type and the same bytes, at up to 64 places of 4 KiB spread from first to last.

    Two matrices that were trained apart differ everywhere; reading all of both would take as long as the file is large.
    """
    bytes_each = one.end - one.start
    if one.dtype != other.dtype or bytes_each != other.end - other.start:
        return False
    last = max(0, bytes_each - _LOOK_BYTES)
    places = {last * number // (_LOOKS - 1) for number in range(_LOOKS)}
    with one.file.open("rb") as first, other.file.open("rb") as second:
        return all(
            os.pread(first.fileno(), min(_LOOK_BYTES, bytes_each), one.start + place)
            == os.pread(second.fileno(), min(_LOOK_BYTES, bytes_each), other.start + place)
            for place in places
        )
