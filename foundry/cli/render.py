"""Records, colours and errors of the command line. Results go to standard output, everything else to standard error."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foundry.errors import Forbidden, FoundryError, RequestFailed, ServiceUnreachable, Unauthorized
from foundry.spec.access import Member
from foundry.spec.evaluation import Evaluation
from foundry.spec.library import Model
from foundry.spec.lifecycle import JobEvent
from foundry.spec.resources import Job

R = TypeVar("R", bound=BaseModel)
_PIPE_WIDTH = 200
"""Tables in a pipe are not folded to the 80 columns that a pipe claims to have."""


def out() -> Console:
    """Standard output; colours only where it is a terminal."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def say(message: str, style: str = "") -> None:
    """Tell the person at the terminal something that is no result."""
    Console(stderr=True, soft_wrap=True).print(Text(message, style=style))


def show_error(error: FoundryError | OSError) -> None:
    """What went wrong, the fields at fault, and the id to give to whoever runs the service."""
    console = Console(stderr=True, soft_wrap=True)
    message = error.message if isinstance(error, FoundryError) else str(error)
    console.print(Text.assemble(("error: ", "bold red"), message))
    for problem in error.problems if isinstance(error, FoundryError) else ():
        place = problem.pointer or "/"
        line = f"  {place}" if problem.detail in message else f"  {place}: {problem.detail}"
        if f"{place}:" not in message:
            console.print(Text(line, style="yellow"))
    if isinstance(error, RequestFailed) and error.request_id:
        console.print(Text(f"  request id: {error.request_id}", style="dim"))


def print_json(content: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """Records as JSON for programs; never coloured or wrapped."""
    if isinstance(content, BaseModel):
        document: Any = content.model_dump(mode="json")
    elif isinstance(content, dict):
        document = content
    else:
        document = [item.model_dump(mode="json") for item in content]
    print(json.dumps(document, indent=2, ensure_ascii=False))


def show_records(
    records: Sequence[BaseModel], as_json: bool, *fields: str, empty: str = "there is nothing yet"
) -> None:
    """Records as JSON, or these fields of them as a table."""
    if as_json:
        print_json(records)
        return
    rows = [{field: getattr(record, field) for field in fields} for record in records]
    kept = [field for field in fields if any(row[field] not in (None, (), "") for row in rows)]
    show_rows([{field: row[field] for field in kept} for row in rows], as_json=False, empty=empty)


def show_table(records: Sequence[R], as_json: bool, to_table: Callable[[Sequence[R]], Table], empty: str) -> None:
    """Records as JSON, or in a table of their own; `empty` is said where there are none."""
    if as_json:
        print_json(records)
    elif records:
        out().print(to_table(records))
    else:
        say(empty)


def show_id(made: Model | Member | Job, as_json: bool) -> None:
    """Something new: its id alone, for the next command in a script."""
    if as_json:
        print_json(made)
    else:
        print(made.id)


def show_status(work: Job | Evaluation, as_json: bool) -> None:
    """Where a job or an evaluation stands now."""
    if as_json:
        print_json(work)
    else:
        print(f"{work.id} {work.status}")


def show_rows(rows: Sequence[Mapping[str, Any]], as_json: bool, empty: str = "there is nothing yet") -> None:
    """Rows with the same columns, as JSON or as a table; `empty` is said where there are none."""
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not rows:
        say(empty)
    else:
        made = table(*rows[0])
        for row in rows:
            made.add_row(*(Text(_cell(name, value)) for name, value in row.items()))
        out().print(made)


def show_record(record: BaseModel, as_json: bool, **more: Any) -> None:
    """One record with all its fields, and more that belong to it."""
    document = {**record.model_dump(mode="json"), **more}
    if as_json:
        print_json(document)
    else:
        show_pairs({**{name: getattr(record, name) for name in type(record).model_fields}, **more})


def show_done(as_json: bool, what: str, whose: str) -> None:
    """That something is done which has no result: `deleted ds_...`, or {"deleted": "ds_..."} for programs."""
    if as_json:
        print_json({what: whose})
    else:
        say(f"{what} {whose}")


def show_pairs(pairs: Mapping[str, Any]) -> None:
    """Names and values below each other; what is empty is left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in pairs.items():
        if (text := _cell(name, value)) != "":
            grid.add_row(Text(name, style="bold"), Text(text))
    out().print(grid)


def print_event(event: JobEvent) -> None:
    """One line of a log."""
    style = {"warning": "yellow", "error": "bold red", "debug": "dim"}.get(event.level, "")
    line = Text.assemble((f"{event.created_at.astimezone():%Y-%m-%d %H:%M:%S}  ", "dim"), (event.message, style))
    out().print(line, soft_wrap=True)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def exit_code(error: FoundryError | OSError) -> int:
    """1: it could not be done. 3: no service answers. 4: the key is missing, refused, or may not do this."""
    if isinstance(error, ServiceUnreachable):
        return 3
    return 4 if isinstance(error, Unauthorized | Forbidden) else 1


def size(count: int) -> str:
    """Bytes for people, in powers of ten as disks and downloads count them: 999 B, 1.5 kB, 4.66 GB."""
    if count < 1000:
        return f"{count} B"
    value = count / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def number(count: int) -> str:
    """Parameters for people: 7.25 M, 1.24 B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)


def table(*columns: str, right: Sequence[str] = (), narrow: bool = False) -> Table:
    """A table without a frame; the first column is never cut, for people copy it. `right` are columns of numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0 if narrow else (0, 1, 0, 0))
    for place, name in enumerate(columns):
        made.add_column(name, no_wrap=place == 0)
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    return made
