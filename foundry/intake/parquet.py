"""Rows of a Parquet file, a few at a time, of the columns that documents are made of.

Read by Apache Arrow. A file of some kilobytes can stand for gigabytes, so what its row groups claim to hold is limited,
and few rows are made of it at once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundry.errors import InvalidData, MissingExtra

MAGIC = b"PAR1"
SUFFIX = ".parquet"
_COLUMNS = ("id", "general", "text", "prompt", "completion", "messages")
_ROWS = 32
_LARGEST_GROUP_BYTES = 2**31
"""Of a column in one row group, unpacked. Writers make groups of at most some hundred megabytes."""
_LARGEST_METADATA = 10**7
"""Characters of a text, and members of a list, in the file's description of itself."""


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number, from 1; cells without a value are left out.

    Raises `InvalidData` for a damaged file, one without a known column, or one whose row groups are too large.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "engine") from error
    limits = {"thrift_string_size_limit": _LARGEST_METADATA, "thrift_container_size_limit": _LARGEST_METADATA}
    number = 0
    try:
        with parquet.ParquetFile(path, **limits) as file:
            columns = _columns(file.schema_arrow.names)
            _check_sizes(file.metadata)
            for batch in file.iter_batches(_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: value for name, value in row.items() if value is not None}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidData(
            f"this is no sound Parquet file, read up to row {number} ({first_line:.200}); write it again"
        ) from error


def _columns(there: list[str]) -> list[str]:
    found = [name for name in _COLUMNS if there.count(name) == 1]
    if not {"text", "prompt", "messages"} & {*found}:
        raise InvalidData(
            f"the columns are {', '.join(map(repr, there[:8])) or 'none'}; give one named text, or prompt and "
            "completion, or messages"
        )
    return found


def _check_sizes(metadata: Any) -> None:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for place in range(row_group.num_columns):
            column = row_group.column(place)
            name, unpacked = column.path_in_schema, column.total_uncompressed_size
            if name.split(".")[0] in _COLUMNS and unpacked > _LARGEST_GROUP_BYTES:
                raise InvalidData(
                    f"row group {group} has {unpacked:,} bytes of {name!r}, more than {_LARGEST_GROUP_BYTES:,}; "
                    "write smaller row groups"
                )
