"""What becomes of a job, for every way that a run can end."""

import pytest

from foundry.spec.lifecycle import EventType, ExitCode, RunEvent
from foundry.spec.resources import Reason
from workers.ending import Ending, Fail, Lose, Pause, Publish, Release, Starve, ending_of

SAID = RunEvent(type=EventType.LOG, level="error", message="line 3: not JSON", data={"code": "invalid_data"})
LINES = ("Traceback", "RuntimeError: on fire")


@pytest.mark.parametrize(
    ("status", "unasked", "asked"),
    [
        (ExitCode.DONE, Publish, Publish),
        (ExitCode.USER_ERROR, Fail, Fail),
        (ExitCode.STORAGE, Pause, Pause),
        (ExitCode.STOPPED, Lose, Release),
        (ExitCode.OUT_OF_MEMORY, Starve, Release),
        (ExitCode.CRASHED, Lose, Release),
        (-9, Lose, Release),
        (-15, Lose, Release),
        (-64, Lose, Release),
        (200, Lose, Release),
    ],
)
def test_ending_follows_from_status_and_orders(status: int, unasked: type[Ending], asked: type[Ending]) -> None:
    assert type(ending_of(status, asked=False, said=None, last_lines=())) is unasked
    assert type(ending_of(status, asked=True, said=None, last_lines=())) is asked


def test_reason_is_what_the_run_said(status: int = ExitCode.USER_ERROR) -> None:
    ending = ending_of(status, asked=False, said=SAID, last_lines=LINES)
    assert ending == Fail(Reason(code="invalid_data", message="line 3: not JSON"))


def test_reason_is_the_last_line_of_standard_error_when_the_run_said_nothing() -> None:
    ending = ending_of(ExitCode.CRASHED, asked=False, said=None, last_lines=LINES)
    assert ending == Lose(Reason(code="crashed", message="the run ended with status 1: RuntimeError: on fire"))


def test_reason_names_the_signal_when_there_was_no_word_at_all() -> None:
    ending = ending_of(-9, asked=False, said=None, last_lines=())
    assert isinstance(ending, Lose) and "SIGKILL" in ending.reason.message


def test_lack_of_memory_has_its_own_code() -> None:
    ending = ending_of(ExitCode.OUT_OF_MEMORY, asked=False, said=None, last_lines=())
    assert isinstance(ending, Starve) and ending.reason.code == "out_of_memory"


def test_kill_is_want_of_memory_when_the_kernel_counts_one_and_we_did_not_ask() -> None:
    assert isinstance(ending_of(-9, asked=False, said=None, last_lines=(), starved=True), Starve)
    assert isinstance(ending_of(-9, asked=True, said=None, last_lines=(), starved=True), Release)
    assert isinstance(ending_of(-11, asked=False, said=None, last_lines=(), starved=True), Lose)
