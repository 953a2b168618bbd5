"""How a run and a download look while they go on: live on a terminal, a line now and then in a pipe.

Everything goes to standard error, so that standard output stays clean for results.
"""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from foundry.spec.lifecycle import EventType, Level

_STYLES: dict[str, str] = {"debug": "dim", "info": "", "warning": "yellow", "error": "bold red"}
_LINES_PER_STAGE = 10
"""How many progress lines a stage prints where no live picture is possible."""


class Event(Protocol):
    """What a `JobEvent` of the service and a `RunEvent` of a local run have in common."""

    @property
    def type(self) -> EventType: ...
    @property
    def level(self) -> Level: ...
    @property
    def message(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...


class RunProgress:
    """A bar for each stage with step, losses, speed and time left; other events are printed above it.

    Used as `with RunProgress() as show: show(event)`.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        # The bar takes what the figures leave, which on 80 columns is little.
        text = TextColumn(
            "{task.completed:,}/{task.total:,}  {task.fields[figures]}", table_column=Column(no_wrap=True)
        )
        self._bars = Progress(
            TextColumn("{task.description}", style="bold"), BarColumn(bar_width=None), text,
            console=self._console, disable=not self._live, expand=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, int] = {}

    def __enter__(self) -> Callable[[Event], None]:
        self._bars.start()
        return self.show

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Take one event of the run."""
        if event.type is EventType.PROGRESS:
            self._advance(event.data)
        elif event.level != "debug" and event.type is not EventType.CHECKPOINT:  # those come by the hundred
            self._console.print(Text(event.message, style=_STYLES[event.level]), soft_wrap=True)
        if (
            event.type is EventType.STAGE_COMPLETED
            and (task := self._tasks.pop(str(event.data.get("stage")), None)) is not None
        ):
            self._bars.remove_task(task)

    def _advance(self, data: Mapping[str, Any]) -> None:
        stage, step, steps = str(data.get("stage", "")), int(data.get("step", 0)), int(data.get("steps", 0))
        said = " ".join(filter(None, (stage, data.get("part"))))
        if not self._live:
            self._print_now_and_then(said, step, steps, data)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(said, total=steps, figures="")
        self._bars.update(self._tasks[stage], description=said, completed=step, total=steps, figures=figures(data))

    def _print_now_and_then(self, said: str, step: int, steps: int, data: Mapping[str, Any]) -> None:
        tenth = step * _LINES_PER_STAGE // steps if steps else 0
        if tenth != self._printed.get(said, -1):
            self._printed[said] = tenth
            line = "  ".join(filter(None, (f"{said} {step:,}/{steps:,}", figures(data))))
            self._console.print(Text(line), soft_wrap=True)


def figures(data: Mapping[str, Any]) -> str:
    """The numbers of a progress event in one line; losses are in nats per token."""
    parts = []
    if (loss := data.get("loss")) is not None:
        parts.append(f"loss {loss:.3f}")
    if (held_out := data.get("held_out_loss")) is not None:
        parts.append(f"held-out {held_out:.3f}")
    if (speed := data.get("tokens_per_s")) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if (held_bytes := data.get("memory_bytes")) is not None:
        parts.append(f"{held_bytes / 1e9:.1f} GB")
    if (left_s := data.get("left_s")) is not None:
        parts.append(f"{duration(left_s)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """0:07, 12:30, 2:03:00."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class DownloadProgress:
    """A bar for each file. Safe to call from the threads that fetch."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=28), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, path: str, done_bytes: int, total_bytes: int) -> None:
        """One file is at `done_bytes` of `total_bytes`."""
        with self._lock:
            if path not in self._tasks:
                self._tasks[path] = self._bars.add_task(path, total=total_bytes)
        self._bars.update(self._tasks[path], completed=done_bytes)
        if done_bytes == total_bytes and not self._console.is_terminal:
            self._console.print(Text(f"{path}  {total_bytes:,} bytes"))
