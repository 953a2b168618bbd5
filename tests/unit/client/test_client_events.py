import io
import threading
import time
from typing import Any

import pytest
from rich.console import Console

from foundry.client.client import Foundry
from foundry.client.progress import DownloadProgress, RunProgress, duration
from foundry.errors import JobFailed, NotFound, ServiceUnreachable, WaitExpired
from foundry.spec.lifecycle import EventType, JobEvent, RunEvent
from tests.unit.client.records import event, job, page
from tests.unit.client.tiny_service import Answer, Seen, TinyService, document, problem

JOB = "/v1/customization/jobs/job_1"


def _history(service: TinyService, *events: dict[str, Any], faults: tuple[Answer, ...] = ()) -> None:
    """Two events an answer; `faults` come after the first answer that has any."""
    left = list(faults)

    def respond(seen: Seen) -> Answer:
        after = int(seen.query["after"])
        if after and left:
            return left.pop(0)
        return document(page(*events[after : after + 2]))

    service.routes[f"{JOB}/events"] = respond


DONE = (
    event(1, "job.submitted"),
    event(2, "job.started"),
    event(3, "progress", stage="distill", step=1, steps=2),
    event(4, "job.succeeded"),
)


def test_events_go_on_after_the_last_one_seen_when_the_connection_is_cut(
    service: TinyService, foundry: Foundry
) -> None:
    _history(service, *DONE, faults=(Answer(body=b"x" * 50, cut=3), problem(503, "database_unavailable", "restarting")))
    assert [e.seq for e in foundry.jobs.events("job_1")] == [1, 2, 3, 4]
    assert [seen.query["after"] for seen in service.seen] == ["0", "2", "2", "2"]


def test_events_outlive_a_service_that_is_away_for_longer_than_the_retries(service: TinyService) -> None:
    _history(service, *DONE, faults=(Answer(cut=0, body=b"x"),) * 3)
    with Foundry(service.url, "k", retries=0) as foundry:
        assert [e.seq for e in foundry.jobs.events("job_1")] == [1, 2, 3, 4]
        _history(service, *DONE, faults=(Answer(cut=0, body=b"x"),) * 3)
        with pytest.raises(ServiceUnreachable):
            list(foundry.jobs.events("job_1", patience_s=0.2))


def test_events_begin_where_the_reader_asks(service: TinyService, foundry: Foundry) -> None:
    _history(service, *DONE)
    assert [e.seq for e in foundry.jobs.events("job_1", after=2)] == [3, 4]


def test_events_end_when_the_reader_has_seen_the_last_one(service: TinyService, foundry: Foundry) -> None:
    _history(service, *DONE)
    service.on(JOB, document(job("succeeded")))
    assert list(foundry.jobs.events("job_1", after=4)) == []


def test_events_miss_nothing_when_the_job_ends_between_two_answers(service: TinyService, foundry: Foundry) -> None:
    answers = [document(page()), document(page(event(1, "job.submitted"), event(2, "job.cancelled")))]
    service.routes[f"{JOB}/events"] = lambda seen: answers.pop(0)
    service.on(JOB, document(job("cancelled")))
    assert [e.seq for e in foundry.jobs.events("job_1")] == [1, 2]


def test_events_of_an_unknown_job_fail_at_once(foundry: Foundry) -> None:
    with pytest.raises(NotFound):
        next(foundry.jobs.events("job_1"))


def test_wait_tells_every_event_and_returns_the_job(service: TinyService, foundry: Foundry) -> None:
    _history(service, *DONE)
    service.on(JOB, document(job("succeeded", variant_ids=["var_1"])))
    told: list[JobEvent] = []
    assert foundry.jobs.wait("job_1", progress=told.append).variant_ids == ("var_1",)
    assert [e.type for e in told] == ["job.submitted", "job.started", "progress", "job.succeeded"]


def test_wait_raises_the_reason_and_the_last_error_when_the_job_failed(service: TinyService, foundry: Foundry) -> None:
    error = event(2, "log", "CUDA says no", "error", code="crashed")
    _history(service, event(1, "job.submitted"), error, event(3, "job.failed", "failed", "error"))
    reason = {"code": "out_of_memory", "message": "3 attempts without progress"}
    service.on(JOB, document(job("failed", status_reason=reason)))
    with pytest.raises(
        JobFailed, match=r"job_1 failed: 3 attempts without progress \(last error: CUDA says no\)"
    ) as failed:
        foundry.jobs.wait("job_1", progress=False)
    assert (failed.value.job_id, failed.value.status, failed.value.reason_code) == ("job_1", "failed", "out_of_memory")


def test_wait_raises_when_the_job_was_cancelled(service: TinyService, foundry: Foundry) -> None:
    _history(service, event(1, "job.submitted"), event(2, "job.cancelled"))
    service.on(JOB, document(job("cancelled")))
    with pytest.raises(JobFailed, match="was cancelled"):
        foundry.jobs.wait("job_1", progress=False)


def test_wait_expires_while_the_job_goes_on(service: TinyService, foundry: Foundry) -> None:
    _history(service, event(1, "job.submitted"))
    quiet = threading.Event()

    def respond(seen: Seen) -> Answer:
        quiet.wait(float(seen.query["wait"]))
        return document(page())

    service.routes[f"{JOB}/events"] = respond
    service.on(JOB, document(job("running")))
    began = time.monotonic()
    with pytest.raises(WaitExpired, match="foundry watch job_1"):
        foundry.jobs.wait("job_1", progress=False, timeout=0.5)
    assert time.monotonic() - began < 3


def _run_events() -> list[RunEvent]:
    steps = [
        RunEvent(type=EventType.PROGRESS, message="", data={
            "stage": "distill", "step": step, "steps": 200, "loss": 3.14159, "held_out_loss": 3.5,
            "tokens_per_s": 12345.6, "memory_bytes": 2_140_000_000, "left_s": 75,
        })
        for step in range(1, 201)
    ]  # fmt: skip
    return [
        RunEvent(type=EventType.STAGE_STARTED, message="distill started", data={"stage": "distill"}),
        *steps,
        RunEvent(type=EventType.WARNING, level="warning", message="[bracketed] warning"),
        RunEvent(type=EventType.STAGE_COMPLETED, message="distill completed", data={"stage": "distill"}),
    ]


def test_progress_prints_a_line_now_and_then_in_a_pipe() -> None:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=200)) as show:
        for one in _run_events():
            show(one)
    lines = out.getvalue().splitlines()
    assert lines[0] == "distill started" and lines[-2:] == ["[bracketed] warning", "distill completed"]
    assert "distill 20/200  loss 3.142  held-out 3.500  12,346 tokens/s  2.1 GB  1:15 left" in lines
    assert len(lines) < 16 and "\x1b" not in out.getvalue()


def test_progress_shows_one_live_bar_for_a_stage_on_a_terminal() -> None:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=120, force_terminal=True)) as view:
        for one in _run_events()[:100]:
            view(one)
    assert "distill" in out.getvalue() and "99/200" in out.getvalue() and "\x1b[" in out.getvalue()


def test_progress_counts_the_parts_of_a_stage_apart() -> None:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=200)) as show:
        for part in ("calibration", "tablet"):
            for step in (1, 2):
                data = {"stage": "prune", "part": part, "step": step, "steps": 2}
                show(RunEvent(type=EventType.PROGRESS, message="", data=data))
    said = ["prune calibration 1/2", "prune calibration 2/2", "prune tablet 1/2", "prune tablet 2/2"]
    assert out.getvalue().splitlines() == said


def test_download_progress_names_each_finished_file_in_a_pipe() -> None:
    out = io.StringIO()
    with DownloadProgress(Console(file=out, width=80)) as tell:
        tell("a.gguf", 500, 1000)
        tell("a.gguf", 1000, 1000)
    assert out.getvalue() == "a.gguf  1,000 bytes\n"


@pytest.mark.parametrize(("seconds", "text"), [(7.2, "0:07"), (750, "12:30"), (7380, "2:03:00"), (-1, "0:00")])
def test_duration_reads_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text
