"""What becomes of a job when its run has ended, decided from the exit status and from what was asked. No I/O."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from foundry.spec.lifecycle import ExitCode, RunEvent
from foundry.spec.resources import Reason


@dataclass(frozen=True)
class Publish:
    """The run finished: its variants are to be checked and published."""


@dataclass(frozen=True)
class Fail:
    """Trying again would end the same way."""

    reason: Reason


@dataclass(frozen=True)
class Pause:
    """The job can go on once the operator has acted."""

    reason: Reason


@dataclass(frozen=True)
class Release:
    """The run stopped because it was asked to."""

    message: str


@dataclass(frozen=True)
class Lose:
    """The run ended as it should not: try again, but not for ever."""

    reason: Reason


@dataclass(frozen=True)
class Starve:
    """The run needed more memory than there was: once more with smaller micro-batches."""

    reason: Reason


Ending = Publish | Fail | Pause | Release | Lose | Starve


def ending_of(
    status: int, *, asked: bool, said: RunEvent | None, last_lines: Sequence[str], starved: bool = False,
) -> Ending:  # fmt: skip
    """`status` as `Popen` gives it; `asked` whether we asked the run to stop; `said` its last event of level error;
    `starved` whether the kernel killed a process of ours for want of memory while the run went on."""
    match status:
        case ExitCode.DONE:
            return Publish()
        case ExitCode.USER_ERROR:
            return Fail(_reason(said, "user_error", last_lines))
        case ExitCode.STORAGE:
            return Pause(_reason(said, "storage_full", last_lines))
        case _ if asked:
            return Release("stopped as asked" if status == ExitCode.STOPPED else f"stopped as asked ({_how(status)})")
        case ExitCode.STOPPED:
            return Lose(Reason(code="stopped", message="the run stopped, though nobody had asked it to"))
        case ExitCode.OUT_OF_MEMORY:
            return Starve(_told(status, _reason(said, "out_of_memory", last_lines)))
        case _ if starved and status == -signal.SIGKILL:
            return Starve(Reason(code="out_of_memory", message="the kernel killed the run for want of memory"))
    return Lose(_told(status, _reason(said, "crashed", last_lines)))


def _told(status: int, reason: Reason) -> Reason:
    return Reason(code=reason.code, message=f"the run {_how(status)}: {reason.message}")


def _reason(said: RunEvent | None, code: str, last_lines: Sequence[str]) -> Reason:
    if said is not None:
        return Reason(code=str(said.data.get("code") or code), message=said.message)
    return Reason(code=code, message=last_lines[-1] if last_lines else "it said nothing about why")


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
