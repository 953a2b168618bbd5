"""The only code that sets a job's status. Where a job may go is asked of `lifecycle.TRANSITIONS`, nowhere repeated.

An operation names the statuses it would lead to, best first; the first that the table allows is taken. So cancelling
makes a queued job cancelled and a running one cancelling without a word here about either.
"""

from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from foundry.errors import IllegalTransition
from foundry.spec.lifecycle import TRANSITIONS, EventType, RunEvent, Status
from foundry.spec.resources import Reason
from foundry.store.database import db_now
from foundry.store.events import append
from foundry.store.tables import AttemptRow, JobRow, ProjectRow

HELD = frozenset({Status.RUNNING, Status.PAUSING, Status.CANCELLING})
"""A worker has the job: it has a lease, and only that worker or the end of the lease moves it on."""

CLAIMABLE = frozenset(status for status in Status if Status.RUNNING in TRANSITIONS[status])

USER_VERBS: Mapping[str, tuple[Status, ...]] = MappingProxyType(
    {
        "cancel": (Status.CANCELLING, Status.CANCELLED),
        "pause": (Status.PAUSING, Status.PAUSED),
        "resume": (Status.QUEUED,),
    }
)

_EVENT: Mapping[Status, EventType] = MappingProxyType(
    {
        Status.QUEUED: EventType.REQUEUED,
        Status.PAUSING: EventType.PAUSE_REQUESTED,
        Status.PAUSED: EventType.PAUSED,
        Status.CANCELLING: EventType.CANCEL_REQUESTED,
        Status.CANCELLED: EventType.CANCELLED,
        Status.SUCCEEDED: EventType.SUCCEEDED,
        Status.FAILED: EventType.FAILED,
    }
)


def first_allowed(job: JobRow, wish: str, *goals: Status) -> Status:
    """The best of `goals` that may follow the job's status; raise `IllegalTransition`."""
    for goal in goals:
        if goal in TRANSITIONS[Status(job.status)]:
            return goal
    raise IllegalTransition(
        f"{job.kind} {job.id} is {job.status} and cannot {wish}; {_what_can_be_done(Status(job.status))}"
    )


def user_goal(job: JobRow, verb: str) -> Status:
    """Where a user's verb leads; raise `IllegalTransition`. A worker's job can be asked to stop, not be taken away."""
    status = Status(job.status)
    if _permits(status, verb):
        return first_allowed(job, verb, *USER_VERBS[verb])
    raise IllegalTransition(f"{job.kind} {job.id} is {status}: there is nothing to {verb}; {_what_can_be_done(status)}")


def move(
    session: Session,
    job: JobRow,
    to: Status,
    message: str,
    *,
    now: float,
    event: EventType | None = None,
    reason: Reason | None = None,
    outcome: str | None = None,
    data: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Set the status of a job whose row this transaction has locked, and write the event that goes with it.

    `outcome` is what the attempt came to when a worker's hold ends; by default the name of the new status.
    """
    before = Status(job.status)
    first_allowed(job, f"become {to}", to)
    attempt = session.get_one(AttemptRow, (job.id, job.epoch)) if before in HELD else None
    job.status = to.value
    job.reason_code, job.reason_message = (reason.code, reason.message) if reason else (None, None)
    if attempt and to not in HELD:
        attempt.ended_at, attempt.outcome, attempt.message = now, outcome or to.value, message
        job.worker = job.lease_until = None
    if to.is_terminal:
        job.finished_at = now
    level = "error" if to is Status.FAILED else "warning" if event is EventType.ATTEMPT_LOST else "info"
    details = dict(data) | ({"code": reason.code} if reason else {})
    append(session, job, [RunEvent(type=event or _EVENT[to], message=message, level=level, data=details)], now)


def take(session: Session, worker: str, lease_s: float, job_id: str) -> JobRow | None:
    """Claim a queued job by a guarded UPDATE; None when another worker was first."""
    waiting = [status.value for status in CLAIMABLE]
    claim = update(JobRow).where(JobRow.status.in_(waiting), JobRow.id == job_id)
    claim = claim.values(
        status=Status.RUNNING.value, epoch=JobRow.epoch + 1, worker=worker, lease_until=db_now() + lease_s,
        reason_code=None, reason_message=None,
    )  # fmt: skip
    taken = session.scalar(claim.returning(JobRow.id), execution_options={"synchronize_session": False})
    if taken is None:
        return None
    job = session.get_one(JobRow, taken)
    now = session.scalars(select(db_now())).one()
    job.started_at = job.started_at or now
    session.execute(update(ProjectRow).where(ProjectRow.id == job.project_id).values(last_claim_at=now))
    session.add(
        AttemptRow(
            job_id=job.id, attempt=job.epoch, worker=worker, started_at=now, ended_at=None, outcome=None, message=None,
            progressed=False,
        )
    )  # fmt: skip
    message = f"attempt {job.epoch} started by {worker}"
    append(session, job, [RunEvent(type=EventType.STARTED, message=message, data={"worker": worker})], now)
    return job


def _permits(status: Status, verb: str) -> bool:
    if verb == "resume" and status in HELD:
        return False  # the table's running -> queued is the worker's to take
    return any(goal in TRANSITIONS[status] for goal in USER_VERBS[verb])


def _what_can_be_done(status: Status) -> str:
    verbs = [verb for verb in USER_VERBS if _permits(status, verb)]
    if status.is_terminal:
        return "a finished job stays as it is: submit a new one"
    return f"what can be done now: {', '.join(verbs)}"
