"""Rows of a Parquet file, of the columns that documents are made of; read by Apache Arrow in a process of its own.

A file of some hundred bytes can stand for gigabytes, whatever it says of its sizes, and Arrow ends the process where
memory ends. So the process has a limit, and its parent stops listening when far more comes out than went in.

    python -m foundry.intake.parquet FILE

prints one JSON object a row, and ends with status 2 and a sentence on standard error for a file that is refused.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from foundry.errors import InvalidData, MissingExtra

MAGIC = b"PAR1"
SUFFIX = ".parquet"
_COLUMNS = ("id", "general", "text", "prompt", "completion", "messages")
_ROWS = 32
"""That are turned into Python's objects at a time."""
_MEMORY_BYTES = 2 * 2**30
_EXPANSION, _SMALL_BYTES = 1000, 2**26
"""A file may unpack to so many times its size, and to so much in any case. Text packs to a tenth or so."""
_REFUSED = 2


def read_rows(path: Path, longest: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number, from 1; cells without a value are left out, `longest` is in bytes of JSON.

    Raises `InvalidData` for a damaged file, one without a known column or with one of another type, a row that is too
    long, and a file that unpacks to too much; `MissingExtra`.
    """
    command = [sys.executable, "-m", "foundry.intake.parquet", str(path.absolute())]
    most = _EXPANSION * path.stat().st_size + _SMALL_BYTES
    number = 0
    with tempfile.TemporaryFile() as complaints:
        # In a session of its own: a signal that asks this process's group to stop is no fault of the file. The reader
        # is killed here, and where this process was killed itself it ends at the broken pipe.
        reader = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
        )
        assert reader.stdout is not None
        try:
            while line := reader.stdout.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise InvalidData(f"row {number}: longer than {longest:,} bytes; split it into several documents")
                most -= len(line)
                if most < 0:
                    raise InvalidData(
                        f"{path.name} unpacks to more than {_EXPANSION} times its size by row {number}; leave out what "
                        "repeats"
                    )
                yield number, json.loads(line)
            status = reader.wait()
        finally:
            reader.kill()
            reader.stdout.close()
            reader.wait()
        if status:
            complaints.seek(0)
            _refuse(status, complaints.read().decode(errors="replace").strip(), number)


def _refuse(status: int, words: str, number: int) -> None:
    if status == _REFUSED:
        raise InvalidData(words)
    if "No module named 'pyarrow'" in words:
        raise MissingExtra("pyarrow", "engine")
    raise InvalidData(
        f"no row after {number} could be read in {_MEMORY_BYTES // 2**30} GiB of memory; write smaller row groups and "
        "pages"
    )


def _main(path: str) -> int:
    """The process: Arrow is imported here alone."""
    import pyarrow
    from pyarrow import parquet

    with suppress(ImportError, ValueError, OSError):  # not on Windows; a lower limit stays
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the others reserve more addresses than they use
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            columns = _columns(file.schema_arrow)
            for batch in file.iter_batches(_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    kept = {name: value for name, value in row.items() if value is not None}
                    sys.stdout.buffer.write(json.dumps(kept, ensure_ascii=False, default=str).encode() + b"\n")
        sys.stdout.flush()
    except InvalidData as error:
        print(error.message, file=sys.stderr)
        return _REFUSED
    except (MemoryError, BrokenPipeError):
        raise
    except Exception as error:  # Arrow's own, and whatever becomes of a cell that Python cannot hold
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(f"no sound Parquet file ({first_line:.200}); write it again", file=sys.stderr)
        return _REFUSED
    return 0


def _columns(schema: Any) -> list[str]:
    """Names of the columns that are read; raise `InvalidData` where none is, or one of another type."""
    found = [name for name in _COLUMNS if schema.names.count(name) == 1]
    if not {"text", "prompt", "messages"} & {*found}:
        raise InvalidData(
            f"the columns are {', '.join(map(repr, schema.names[:8])) or 'none'}; give one named text, or prompt and "
            "completion, or messages"
        )
    for name in found:
        kind = schema.field(name).type
        if not _is_fitting(name, kind):
            asked = {"id": "text or whole numbers", "general": "true or false", "messages": "lists of role and content"}
            raise InvalidData(f"the column {name!r} holds {kind}; it has to hold {asked.get(name, 'text')}")
    return found


def _is_fitting(name: str, kind: Any) -> bool:
    from pyarrow import types

    if name == "messages":
        if not (types.is_list(kind) or types.is_large_list(kind)) or not types.is_struct(kind.value_type):
            return False
        turn = kind.value_type
        texts = [turn.field(place) for place in range(turn.num_fields)]
        return all(_is_text(field.type) for field in texts if field.name in ("role", "content"))
    if name == "general":
        return bool(types.is_boolean(kind))
    return _is_text(kind) or (name == "id" and bool(types.is_integer(kind)))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(value) or types.is_large_string(value) or types.is_string_view(value))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
