"""What the relay lets pass, holds back and drops."""

import pytest

from foundry.spec.lifecycle import EventType, RunEvent
from workers.relay import Relay


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def relay(clock: Clock) -> Relay:
    return Relay(clock)


def say(relay: Relay, type: EventType, message: str = "", **data: object) -> None:
    relay.hear(RunEvent(type=type, message=message, data=data).model_dump_json().encode())


def progress(relay: Relay, step: int, stage: str = "distill", steps: int = 1000) -> None:
    say(relay, EventType.PROGRESS, f"{stage} {step}", stage=stage, step=step, steps=steps)


def messages(relay: Relay) -> list[str]:
    return [event.message for event in relay.take()]


def test_progress_passes_once_in_half_a_second(relay: Relay, clock: Clock) -> None:
    passed = []
    for step in range(1, 21):
        progress(relay, step)
        passed += messages(relay)
        clock.now_s += 0.125
    assert passed == [f"distill {step}" for step in (1, 5, 9, 13, 17)]


def test_newest_progress_passes_when_its_time_comes_though_nothing_more_is_said(relay: Relay, clock: Clock) -> None:
    for step in (1, 2, 3):
        progress(relay, step)
    assert messages(relay) == ["distill 1"] and not relay.is_empty
    clock.now_s += 0.5
    assert messages(relay) == ["distill 3"] and relay.is_empty


def test_last_progress_of_a_stage_always_passes_and_before_the_stages_end(relay: Relay) -> None:
    for step in (1, 2):
        progress(relay, step)
    say(relay, EventType.STAGE_COMPLETED, "completed", stage="distill")
    assert messages(relay) == ["distill 1", "distill 2", "completed"]
    progress(relay, 9, steps=10)
    progress(relay, 10, steps=10)
    assert messages(relay) == ["distill 10"]


def test_stages_are_thinned_out_each_for_itself(relay: Relay) -> None:
    progress(relay, 1, "distill")
    progress(relay, 1, "lora")
    progress(relay, 2, "lora")
    assert messages(relay) == ["distill 1", "lora 1"]
    relay.end()
    assert messages(relay) == ["lora 2"]


def test_everything_else_passes_in_order(relay: Relay) -> None:
    for number in range(500):
        say(relay, EventType.LOG, str(number))
    taken: list[str] = []
    while batch := messages(relay):
        taken += batch
    assert taken == [str(number) for number in range(500)]


def test_events_that_could_not_be_delivered_come_first_again(relay: Relay) -> None:
    say(relay, EventType.LOG, "first")
    batch = relay.take()
    say(relay, EventType.LOG, "second")
    relay.give_back(batch)
    assert messages(relay) == ["first", "second"]


def test_logs_are_dropped_and_counted_but_milestones_kept_when_the_database_is_away_for_long(relay: Relay) -> None:
    for number in range(10_050):
        say(relay, EventType.LOG, str(number))
    say(relay, EventType.CHECKPOINT, "checkpoint", stage="distill", step=1)
    taken: list[RunEvent] = []
    while batch := relay.take():
        taken += batch
    assert len(taken) == 10_002
    assert taken[-2].message == "checkpoint"
    assert (taken[-1].type, taken[-1].message.split()[0]) == (EventType.WARNING, "50")
    assert relay.is_empty


@pytest.mark.parametrize(
    "line",
    [b"plain text\n", b"{}\n", b"\xff\xfe\n", b'{"type": "unknown", "message": ""}\n', b"[1]\n", b"",
     b'{"type": "job.succeeded", "message": "I am done"}\n', b'{"type": "log", "message": "x", "more": 1}\n'],
)  # fmt: skip
def test_line_that_is_no_event_of_a_run_is_not_relayed(relay: Relay, line: bytes) -> None:
    relay.hear(line)
    assert relay.take() == [] and relay.is_empty


def test_endless_message_is_cut(relay: Relay) -> None:
    say(relay, EventType.LOG, "x" * 500_000)
    [event] = relay.take()
    assert len(event.message) == 10_001


def test_last_error_is_remembered_as_the_reason(relay: Relay) -> None:
    for message in ("first", "last"):
        event = RunEvent(type=EventType.LOG, level="error", message=message, data={"code": "invalid_data"})
        relay.hear(event.model_dump_json().encode())
    say(relay, EventType.LOG, "only information")
    assert relay.last_error is not None and relay.last_error.message == "last"
