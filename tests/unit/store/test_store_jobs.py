"""Submitting, finding and listing jobs, and what their history says."""

import math
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select

from foundry.errors import IdempotencyConflict, NotFound
from foundry.spec.lifecycle import EventType, Status
from foundry.spec.resources import Reason
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.settings import Settings
from foundry.store.tables import EventRow, IdempotencyRow, JobRow
from tests import factories


def count(database: Database, table: type) -> int:
    with database.read() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def test_submit_writes_a_queued_job_and_its_first_event(jobs: Jobs, project_id: str) -> None:
    spec = factories.spec(name="first", seed=7)
    job = jobs.submit(project_id, spec, factories.inputs())
    assert (job.status, job.is_terminal, job.attempt, job.name, job.spec) == (Status.QUEUED, False, 0, "first", spec)
    assert job.model_copy(update={"queue_position": 1}) == jobs.get(project_id, job.id)
    [event] = jobs.events(project_id, job.id)
    assert (event.seq, event.type, event.attempt, event.job_id) == (1, EventType.SUBMITTED, 0, job.id)


def test_submit_returns_the_earlier_job_when_the_key_is_used_again(
    jobs: Jobs, database: Database, project_id: str
) -> None:
    first = jobs.submit(project_id, factories.spec(), factories.inputs(), factories.request())
    again = jobs.submit(project_id, factories.spec(), factories.inputs(), factories.request())
    assert again == first
    assert (count(database, JobRow), count(database, EventRow), count(database, IdempotencyRow)) == (1, 1, 1)


@pytest.mark.parametrize(
    "other", [factories.request(body=b"other"), factories.request(route="POST /v1/datasets")], ids=["body", "route"]
)
def test_submit_refuses_a_used_key_when_the_request_is_another(
    jobs: Jobs, database: Database, project_id: str, other: factories.Idempotency
) -> None:
    jobs.submit(project_id, factories.spec(), factories.inputs(), factories.request())
    with pytest.raises(IdempotencyConflict, match="key-1"):
        jobs.submit(project_id, factories.spec(), factories.inputs(), other)
    assert count(database, JobRow) == 1


def test_key_of_one_project_says_nothing_in_another(jobs: Jobs, database: Database, project_id: str) -> None:
    other = factories.project(database, "other")
    first = jobs.submit(project_id, factories.spec(), factories.inputs(), factories.request())
    second = jobs.submit(other, factories.spec(), factories.inputs(), factories.request(body=b"other"))
    assert first.id != second.id


def test_submit_makes_one_job_when_eight_requests_share_a_key(jobs: Jobs, database: Database, project_id: str) -> None:
    made: list[str] = []
    start = threading.Barrier(8)

    def submit() -> None:
        start.wait()
        made.append(jobs.submit(project_id, factories.spec(), factories.inputs(), factories.request()).id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1
    assert (count(database, JobRow), count(database, IdempotencyRow)) == (1, 1)


def test_key_is_free_again_when_its_transaction_failed(jobs: Jobs, database: Database, project_id: str) -> None:
    with pytest.raises(Exception, match=r"(?i)constraint"):
        jobs.submit("prj_gone", factories.spec(), factories.inputs(), factories.request())
    assert count(database, IdempotencyRow) == 0
    assert jobs.submit(project_id, factories.spec(), factories.inputs(), factories.request()).status is Status.QUEUED


def test_job_of_another_project_is_not_found_by_any_method(jobs: Jobs, database: Database, project_id: str) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    other = factories.project(database, "other")
    for method in (jobs.get, jobs.events, jobs.attempts, jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(NotFound, match=job.id):
            method(other, job.id)
    assert jobs.list(other).data == ()
    assert jobs.get(project_id, job.id).status is Status.QUEUED


def test_list_walks_all_jobs_newest_first_page_by_page(jobs: Jobs, project_id: str) -> None:
    ids = [jobs.submit(project_id, factories.spec(), factories.inputs()).id for _ in range(5)]
    seen: list[str] = []
    after = None
    for size in (2, 2, 1):
        page = jobs.list(project_id, limit=2, after=after)
        assert len(page.data) == size
        seen += [job.id for job in page.data]
        after = page.next
    assert after is None and not page.has_more
    assert seen == ids[::-1]


def test_list_has_no_next_when_the_page_is_just_full(jobs: Jobs, project_id: str) -> None:
    for _ in range(2):
        jobs.submit(project_id, factories.spec(), factories.inputs())
    page = jobs.list(project_id, limit=2)
    assert (len(page.data), page.has_more, page.next) == (2, False, None)


def test_list_shows_one_status_when_asked(jobs: Jobs, project_id: str) -> None:
    jobs.submit(project_id, factories.spec(), factories.inputs())
    claim = factories.running(jobs, project_id)
    assert [job.id for job in jobs.list(project_id, status=Status.RUNNING).data] == [claim.job_id]


def test_events_are_read_from_a_number_on_and_up_to_a_limit(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    jobs.append(claim, [factories.said(EventType.LOG, f"line {n}") for n in range(5)])
    assert [event.seq for event in jobs.events(project_id, claim.job_id, after=3, limit=2)] == [4, 5]
    assert jobs.events(project_id, claim.job_id, after=7) == []


def test_job_shows_the_stage_and_progress_that_the_run_reports(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    jobs.append(claim, [factories.said(EventType.STAGE_STARTED, stage="distill")])
    assert jobs.get(project_id, claim.job_id).stage == "distill"
    progress = {"stage": "distill", "step": 3, "steps": 10, "loss": 2.5, "tokens_per_s": 100.0}
    jobs.append(claim, [factories.said(EventType.PROGRESS, "distill 3/10", **progress)])
    shown = jobs.get(project_id, claim.job_id).progress
    assert shown is not None and shown.model_dump(exclude_none=True) == progress
    jobs.append(claim, [factories.said(EventType.STAGE_STARTED, stage="export")])
    job = jobs.get(project_id, claim.job_id)
    assert (job.stage, job.progress) == ("export", None)


def test_numbers_that_json_does_not_know_are_stored_as_null(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    jobs.append(
        claim, [factories.said(EventType.METRICS, "nul \0", loss=math.nan, all=[math.inf, 1.0], text="\0\ud800")]
    )
    event = jobs.events(project_id, claim.job_id)[-1]
    assert event.data == {"loss": None, "all": [None, 1.0], "text": "\0\ud800"}
    assert event.message == "nul �"


def test_run_cannot_write_events_that_belong_to_transitions(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    with pytest.raises(ValueError, match=r"job\.succeeded"):
        jobs.append(claim, [factories.said(EventType.LOG), factories.said(EventType.SUCCEEDED)])
    assert [event.type for event in jobs.events(project_id, claim.job_id)] == [EventType.SUBMITTED, EventType.STARTED]


def test_succeed_publishes_variants_events_and_status_together(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    job = jobs.succeed(claim, [factories.new_variant("kiosk"), factories.new_variant("watch")])
    assert (job.status, job.is_terminal, len(job.variant_ids)) == (Status.SUCCEEDED, True, 2)
    assert job.finished_at is not None and job.started_at is not None and job.finished_at >= job.started_at
    last = jobs.events(project_id, job.id)[-3:]
    assert [e.type for e in last] == [EventType.VARIANT_PUBLISHED, EventType.VARIANT_PUBLISHED, EventType.SUCCEEDED]
    assert tuple(last[-1].data["variant_ids"]) == job.variant_ids
    assert [attempt.outcome for attempt in jobs.attempts(project_id, job.id)] == ["succeeded"]


def test_succeed_writes_nothing_when_one_variant_cannot_be_written(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    with pytest.raises(Exception, match=r"(?i)unique"):
        jobs.succeed(claim, [factories.new_variant("kiosk"), factories.new_variant("kiosk")])
    job = jobs.get(project_id, claim.job_id)
    assert (job.status, job.variant_ids) == (Status.RUNNING, ())
    assert len(jobs.events(project_id, job.id)) == 2


def test_failed_job_says_why_to_people_and_programs(jobs: Jobs, project_id: str) -> None:
    reason = Reason(code="invalid_data", message="line 3: not JSON")
    claim = factories.running(jobs, project_id)
    assert jobs.fail(claim, reason).status_reason == reason
    event = jobs.events(project_id, claim.job_id)[-1]
    assert (event.level, event.message, event.data) == ("error", reason.message, {"code": "invalid_data"})


def test_terminal_among_names_those_that_have_ended(jobs: Jobs, project_id: str) -> None:
    ended, going = factories.running(jobs, project_id), factories.running(jobs, project_id)
    jobs.fail(ended, Reason(code="x", message="y"))
    assert jobs.terminal_among([ended.job_id, going.job_id, "job_unknown"]) == {ended.job_id}


def test_jobs_outlive_the_process_that_wrote_them(
    database_url: str, tmp_path: Path, project_id: str, jobs: Jobs
) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    reopened = Database(database_url)
    assert Jobs(reopened, Settings(home=tmp_path)).get(project_id, job.id) == jobs.get(project_id, job.id)
    reopened.close()
