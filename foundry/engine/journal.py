"""The workspace's own memory of its run: events.jsonl, one line for each event that is worth keeping.

The supervisor keeps events in its database, `foundry run` shows them and forgets them. The report is made where neither
can be asked, so the run writes down what it says, progress and chatter left out. One attempt follows the other.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from foundry.engine.energy import processor_joules
from foundry.engine.workspace import Workspace
from foundry.spec.lifecycle import EventType, RunEvent

if TYPE_CHECKING:  # a report is made without torch
    from foundry.engine.context import RunContext

NAME = "events.jsonl"
ATTEMPT = "attempt.started"
ENDED = "attempt.ended"
FAILED = "run.failed"
CANCELLED = "run.cancelled"


class Entry(NamedTuple):
    """One line."""

    at: datetime
    type: str
    message: str
    level: str
    data: dict[str, Any]


class Journal:
    """Appends to the journal of one workspace. A line that cannot be written is lost, never the run."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.root / NAME

    def open(self, context: "RunContext") -> None:
        """Begin an attempt."""
        from foundry.engine.hardware import hardware_name  # torch, which whoever runs has loaded already

        self.note(
            ATTEMPT, "an attempt began", hardware=hardware_name(context.device), device=context.device.type,
            dtype=str(context.dtype).removeprefix("torch."), processor_joules=processor_joules(),
        )  # fmt: skip

    def close(self) -> None:
        """End an attempt, however it went."""
        self.note(ENDED, "the attempt ended", processor_joules=processor_joules())

    def hearing(self, emit: Callable[[RunEvent], None]) -> Callable[[RunEvent], None]:
        """The same voice, written down."""

        def both(event: RunEvent) -> None:
            if event.type != EventType.PROGRESS and event.level != "debug":
                self.note(event.type, event.message, level=event.level, **event.data)
            emit(event)

        return both

    def note(self, kind: str, message: str, *, level: str = "info", **data: Any) -> None:
        """Append one line."""
        line = {"at": datetime.now(UTC).isoformat(), "type": kind, "level": level, "message": message, "data": data}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        except OSError:
            return


def read_journal(root: Path) -> list[Entry]:
    """Every whole line, in order; a line that a crash cut short is passed over."""
    try:
        lines = (root / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Entry] = []
    for line in lines:
        try:
            row = json.loads(line)
            at = datetime.fromisoformat(row["at"])
            found.append(Entry(at, row["type"], row["message"], row["level"], row["data"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
