"""Every operation in every status: what happens is what `lifecycle.TRANSITIONS` says, and nothing else."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from sqlalchemy import select, update

from foundry.errors import IllegalTransition, LeaseLost
from foundry.spec.lifecycle import TRANSITIONS, EventType, Status
from foundry.spec.resources import Reason
from foundry.store.database import Database, db_now
from foundry.store.jobs import Jobs
from foundry.store.records import Claim
from foundry.store.tables import AttemptRow, JobRow
from tests import factories

HELD = {Status.RUNNING, Status.PAUSING, Status.CANCELLING}
REASON = Reason(code="invalid_data", message="line 3: not JSON")
Operation = Callable[[Jobs, Claim], object]

USERS: Mapping[str, Operation] = {
    "cancel": lambda jobs, claim: jobs.cancel(claim.project_id, claim.job_id),
    "pause": lambda jobs, claim: jobs.pause(claim.project_id, claim.job_id),
    "resume": lambda jobs, claim: jobs.resume(claim.project_id, claim.job_id),
}
WORKERS: Mapping[str, Operation] = {
    "succeed": lambda jobs, claim: jobs.succeed(claim, [factories.new_variant()]),
    "fail": lambda jobs, claim: jobs.fail(claim, REASON),
    "cancelled": lambda jobs, claim: jobs.cancelled(claim),
    "paused": lambda jobs, claim: jobs.paused(claim),
    "release": lambda jobs, claim: jobs.release(claim, "the worker stops"),
    "lose": lambda jobs, claim: jobs.lose(claim, "killed"),
}
GOALS: Mapping[str, tuple[Status, ...]] = {
    "cancel": (Status.CANCELLING, Status.CANCELLED),
    "pause": (Status.PAUSING, Status.PAUSED),
    "resume": (Status.QUEUED,),
    "succeed": (Status.SUCCEEDED,),
    "fail": (Status.FAILED,),
    "cancelled": (Status.CANCELLED,),
    "paused": (Status.PAUSED,),
    "release": (Status.QUEUED, Status.PAUSED, Status.CANCELLED),
    "lose": (Status.QUEUED, Status.PAUSED, Status.CANCELLED),
}
"""Where each operation would lead, best first."""


def expected(status: Status, operation: str) -> Status | type[Exception]:
    """The status after the operation, or the error, from the table and four sentences."""
    if operation in WORKERS and status not in HELD:
        return LeaseLost  # a worker acts on what it holds
    if operation == "resume" and status in HELD:
        return IllegalTransition  # running -> queued is the worker's way
    if (operation, status) in (("cancel", Status.CANCELLING), ("pause", Status.PAUSING)):
        return status  # asking twice is no error
    allowed = [goal for goal in GOALS[operation] if goal in TRANSITIONS[status]]
    return allowed[0] if allowed else IllegalTransition


def put_into(database: Database, claim: Claim, status: Status) -> None:
    """Set the row's status from outside: every status must be tried, however hard it is to get there."""
    lease = db_now() + 60 if status in HELD else None
    with database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == claim.job_id).values(status=status.value, lease_until=lease))


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("operation", GOALS)
def test_operation_follows_the_table(
    jobs: Jobs, database: Database, project_id: str, operation: str, status: Status
) -> None:
    claim = factories.running(jobs, project_id)
    put_into(database, claim, status)
    before = jobs.events(project_id, claim.job_id)
    outcome = expected(status, operation)
    act = (USERS | WORKERS)[operation]
    if isinstance(outcome, Status):
        act(jobs, claim)
        assert jobs.get(project_id, claim.job_id).status is outcome
    else:
        with pytest.raises(outcome):
            act(jobs, claim)
        assert jobs.get(project_id, claim.job_id).status is status
        assert jobs.events(project_id, claim.job_id) == before
    check_lease(database, claim)


def check_lease(database: Database, claim: Claim) -> None:
    """A job has a lease exactly while a worker holds it."""
    with database.read() as session:
        row = session.get_one(JobRow, claim.job_id)
        attempt = session.scalars(select(AttemptRow).where(AttemptRow.job_id == claim.job_id)).one()
    assert (row.lease_until is not None) == (Status(row.status) in HELD)
    if attempt.ended_at is not None:
        assert row.worker is None and attempt.outcome


@pytest.mark.parametrize("status", Status)
def test_claim_takes_a_job_exactly_when_the_table_lets_it_run(
    jobs: Jobs, database: Database, project_id: str, status: Status
) -> None:
    claim = factories.running(jobs, project_id)
    put_into(database, claim, status)
    for chosen in (claim.job_id, None):
        claimable = Status.RUNNING in TRANSITIONS[Status(jobs.get(project_id, claim.job_id).status)]
        assert (jobs.claim("worker-2", chosen) is not None) is claimable


def test_refusal_names_the_status_and_what_can_be_done(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    with pytest.raises(IllegalTransition, match=r"is running.*what can be done now: cancel, pause"):
        jobs.resume(project_id, claim.job_id)
    jobs.fail(claim, REASON)
    with pytest.raises(IllegalTransition, match=r"is failed.*submit a new one"):
        jobs.cancel(project_id, claim.job_id)


EVENT_OF = {
    (Status.QUEUED, "cancel"): EventType.CANCELLED,
    (Status.RUNNING, "cancel"): EventType.CANCEL_REQUESTED,
    (Status.QUEUED, "pause"): EventType.PAUSED,
    (Status.RUNNING, "pause"): EventType.PAUSE_REQUESTED,
    (Status.PAUSED, "resume"): EventType.RESUMED,
    (Status.RUNNING, "release"): EventType.REQUEUED,
    (Status.RUNNING, "lose"): EventType.ATTEMPT_LOST,
    (Status.PAUSING, "release"): EventType.PAUSED,
    (Status.CANCELLING, "lose"): EventType.CANCELLED,
    (Status.RUNNING, "succeed"): EventType.SUCCEEDED,
    (Status.RUNNING, "fail"): EventType.FAILED,
}


@pytest.mark.parametrize(("status", "operation"), EVENT_OF)
def test_transition_writes_its_event_last(
    jobs: Jobs, database: Database, project_id: str, status: Status, operation: str
) -> None:
    claim = factories.running(jobs, project_id)
    put_into(database, claim, status)
    (USERS | WORKERS)[operation](jobs, claim)
    assert jobs.events(project_id, claim.job_id)[-1].type is EVENT_OF[status, operation]


def test_status_is_set_in_one_file_only() -> None:
    store = Path(__file__).parents[3] / "foundry" / "store"
    setters = [
        path.name
        for path in sorted(store.glob("*.py"))
        if re.search(r"\.status = |status=Status\.(?!QUEUED)", path.read_text())
    ]
    assert setters == ["transition.py"]
