"""Claims, leases and fencing: one attempt at a time, and nothing from an attempt that is over."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from sqlalchemy import update

from foundry.errors import LeaseLost
from foundry.spec.lifecycle import EventType, RunEvent, Status
from foundry.spec.resources import Reason
from foundry.store.database import Database, db_now
from foundry.store.jobs import Jobs
from foundry.store.records import Claim, Orders
from foundry.store.tables import JobRow
from tests import factories


def let_lease_end(database: Database, job_id: str) -> None:
    """As if the worker had been silent for a lease."""
    with database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=db_now() - 1))


def together(action: Callable[[int], None], threads: int = 8) -> None:
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        start.wait()
        action(number)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def test_claim_hands_over_what_the_run_needs(jobs: Jobs, project_id: str) -> None:
    spec, inputs = factories.spec(seed=3), factories.inputs(data_sha256="c" * 64)
    job = jobs.submit(project_id, spec, inputs)
    claim = jobs.claim("worker-1", job.id)
    assert claim == Claim(job_id=job.id, project_id=project_id, epoch=1, spec=spec, inputs=inputs, worker="worker-1")
    [attempt] = jobs.attempts(project_id, job.id)
    assert (attempt.attempt, attempt.worker, attempt.ended_at, attempt.outcome) == (1, "worker-1", None, None)


def test_claim_takes_the_oldest_job_when_none_is_named(jobs: Jobs, project_id: str) -> None:
    ids = [jobs.submit(project_id, factories.spec(), factories.inputs()).id for _ in range(3)]
    claims = [jobs.claim("worker") for _ in range(4)]
    assert [claim and claim.job_id for claim in claims] == [*ids, None]


@pytest.mark.parametrize("named", [True, False], ids=["named", "oldest"])
def test_claim_is_exclusive_when_eight_workers_want_one_job(jobs: Jobs, project_id: str, named: bool) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    claims: list[Claim | None] = []
    together(lambda n: claims.append(jobs.claim(f"worker-{n}", job.id if named else None)))
    assert len(claims) == 8
    assert [claim.epoch for claim in claims if claim] == [1]
    assert len(jobs.attempts(project_id, job.id)) == 1


def test_eight_workers_share_eight_jobs_without_a_double(jobs: Jobs, project_id: str) -> None:
    ids = {jobs.submit(project_id, factories.spec(), factories.inputs()).id for _ in range(8)}
    claimed: list[str] = []

    def work(number: int) -> None:
        while (claim := jobs.claim(f"worker-{number}")) is not None:
            claimed.append(claim.job_id)

    together(work)
    assert len(claimed) == 8 and set(claimed) == ids


def test_events_have_no_gap_and_no_double_when_eight_threads_append(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)

    def say(number: int) -> None:
        for n in range(5):
            jobs.append(claim, [factories.said(EventType.LOG, f"{number} {n} {part}") for part in "ab"])

    together(say)
    events = jobs.events(project_id, claim.job_id, limit=1000)
    assert [event.seq for event in events] == list(range(1, 8 * 5 * 2 + 3))
    assert len({event.message for event in events}) == len(events)
    assert len({event.id for event in events}) == len(events)


WRITES: Mapping[str, Callable[[Jobs, Claim], object]] = {
    "heartbeat": lambda jobs, claim: jobs.heartbeat(claim),
    "append": lambda jobs, claim: jobs.append(claim, [factories.said(EventType.LOG, "from the dead")]),
    "succeed": lambda jobs, claim: jobs.succeed(claim, [factories.new_variant()]),
    "fail": lambda jobs, claim: jobs.fail(claim, Reason(code="x", message="y")),
    "cancelled": lambda jobs, claim: jobs.cancelled(claim),
    "paused": lambda jobs, claim: jobs.paused(claim),
    "release": lambda jobs, claim: jobs.release(claim, "bye"),
    "lose": lambda jobs, claim: jobs.lose(claim, "gone"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("claimed_again", [True, False], ids=["claimed-again", "queued-again"])
def test_old_attempt_can_write_nothing(
    jobs: Jobs, database: Database, project_id: str, write: str, claimed_again: bool
) -> None:
    old = factories.running(jobs, project_id)
    let_lease_end(database, old.job_id)
    jobs.reconcile()
    if claimed_again:
        assert jobs.claim("worker-2", old.job_id) is not None
    before = (
        jobs.get(project_id, old.job_id),
        jobs.events(project_id, old.job_id),
        jobs.attempts(project_id, old.job_id),
    )
    with pytest.raises(LeaseLost, match="attempt 1"):
        WRITES[write](jobs, old)
    after = jobs.get(project_id, old.job_id), jobs.events(project_id, old.job_id), jobs.attempts(project_id, old.job_id)
    assert after == before


def test_heartbeat_keeps_the_job_when_the_lease_would_have_ended(
    jobs: Jobs, database: Database, project_id: str
) -> None:
    claim = factories.running(jobs, project_id)
    let_lease_end(database, claim.job_id)
    assert jobs.heartbeat(claim) == Orders(cancel=False, pause=False)
    assert jobs.reconcile() == []
    assert jobs.get(project_id, claim.job_id).status is Status.RUNNING


def test_heartbeat_brings_the_users_orders(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    jobs.pause(project_id, claim.job_id)
    assert jobs.heartbeat(claim) == Orders(cancel=False, pause=True)
    jobs.cancel(project_id, claim.job_id)
    assert jobs.heartbeat(claim) == Orders(cancel=True, pause=False)


def test_reconcile_queues_a_silent_workers_job_and_rings_for_all_queued(
    jobs: Jobs, database: Database, project_id: str
) -> None:
    silent, alive = factories.running(jobs, project_id), factories.running(jobs, project_id)
    waiting = jobs.submit(project_id, factories.spec(), factories.inputs())
    let_lease_end(database, silent.job_id)
    assert jobs.reconcile() == [silent.job_id, waiting.id]
    assert jobs.get(project_id, alive.job_id).status is Status.RUNNING
    event = jobs.events(project_id, silent.job_id)[-1]
    assert (event.type, event.level) == (EventType.ATTEMPT_LOST, "warning")
    assert [attempt.outcome for attempt in jobs.attempts(project_id, silent.job_id)] == ["lost"]
    again = jobs.claim("worker-2", silent.job_id)
    assert again is not None and again.epoch == 2


@pytest.mark.parametrize(
    ("order", "end"), [("cancel", Status.CANCELLED), ("pause", Status.PAUSED)], ids=["cancelling", "pausing"]
)
def test_reconcile_carries_out_the_users_order_when_the_worker_is_gone(
    jobs: Jobs, database: Database, project_id: str, order: str, end: Status
) -> None:
    claim = factories.running(jobs, project_id)
    getattr(jobs, order)(project_id, claim.job_id)
    let_lease_end(database, claim.job_id)
    assert jobs.reconcile() == []
    assert jobs.get(project_id, claim.job_id).status is end


def test_reconcile_by_eight_workers_loses_an_attempt_once(jobs: Jobs, database: Database, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    let_lease_end(database, claim.job_id)
    queued: list[Sequence[str]] = []
    together(lambda _: queued.append(jobs.reconcile()))
    assert [claim.job_id] in queued
    types = [event.type for event in jobs.events(project_id, claim.job_id)]
    assert types.count(EventType.ATTEMPT_LOST) == 1


def lose_after(jobs: Jobs, project_id: str, job_id: str, *said: RunEvent) -> Status:
    claim = jobs.claim("worker", job_id)
    assert claim is not None
    if said:
        jobs.append(claim, said)
    return jobs.lose(claim, "killed by SIGKILL", code="crashed").status


def test_job_fails_after_three_attempts_without_progress(jobs: Jobs, project_id: str) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    statuses = [lose_after(jobs, project_id, job.id, factories.said(EventType.LOG, "starting")) for _ in range(3)]
    assert statuses == [Status.QUEUED, Status.QUEUED, Status.FAILED]
    reason = jobs.get(project_id, job.id).status_reason
    assert reason is not None and reason.code == "crashed"
    assert "3 attempts" in reason.message and "killed by SIGKILL" in reason.message
    assert [attempt.outcome for attempt in jobs.attempts(project_id, job.id)] == ["lost"] * 3


def test_job_goes_on_for_as_long_as_attempts_make_progress(jobs: Jobs, project_id: str) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    for step in range(5):
        checkpoint = factories.said(EventType.CHECKPOINT, stage="distill", step=step)
        assert lose_after(jobs, project_id, job.id, checkpoint) is Status.QUEUED
    completed = factories.said(EventType.STAGE_COMPLETED, stage="distill")
    assert lose_after(jobs, project_id, job.id, completed) is Status.QUEUED
    assert [lose_after(jobs, project_id, job.id) for _ in range(3)][-1] is Status.FAILED


def test_work_done_a_second_time_is_no_progress(jobs: Jobs, project_id: str) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    again = factories.said(EventType.CHECKPOINT, stage="distill", step=100)
    statuses = [lose_after(jobs, project_id, job.id, again) for _ in range(4)]
    assert statuses == [Status.QUEUED, Status.QUEUED, Status.QUEUED, Status.FAILED]


def test_release_costs_no_attempt(jobs: Jobs, project_id: str) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    for _ in range(5):
        claim = jobs.claim("worker", job.id)
        assert claim is not None
        assert jobs.release(claim, "the worker stops").status is Status.QUEUED
    assert {attempt.outcome for attempt in jobs.attempts(project_id, job.id)} == {"released"}
    assert jobs.events(project_id, job.id)[-1].type is EventType.REQUEUED


def test_resume_gives_all_attempts_again(jobs: Jobs, project_id: str) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    assert [lose_after(jobs, project_id, job.id) for _ in range(2)] == [Status.QUEUED, Status.QUEUED]
    jobs.pause(project_id, job.id)
    assert jobs.resume(project_id, job.id).status is Status.QUEUED
    assert [lose_after(jobs, project_id, job.id) for _ in range(2)] == [Status.QUEUED, Status.QUEUED]


def test_paused_job_says_why_when_it_was_not_the_user(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    reason = Reason(code="storage_full", message="no space left")
    assert jobs.paused(claim, reason).status_reason == reason
    assert jobs.resume(project_id, claim.job_id).status_reason is None


def test_lease_lost_is_raised_for_a_job_that_never_was(jobs: Jobs, tmp_path: Path) -> None:
    claim = Claim(
        job_id="job_none", project_id="prj", epoch=1, spec=factories.spec(), inputs=factories.inputs(), worker="w"
    )
    with pytest.raises(LeaseLost):
        jobs.heartbeat(claim)
