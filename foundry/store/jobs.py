"""Jobs, as users ask for them and as workers carry them out. The only writer of jobs, attempts and events."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from foundry.errors import LeaseLost
from foundry.spec.evaluation import Evaluation
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType, JobEvent, RunEvent, Status, WorkKind
from foundry.spec.resources import Attempt, Job, Page, Reason
from foundry.spec.variant import Artifact
from foundry.store import events as history
from foundry.store.database import Database, db_now, insert_if_absent
from foundry.store.history import attempt_of
from foundry.store.ids import new_id
from foundry.store.job_records import evaluation_of, records_of, submitted_of
from foundry.store.pages import page_of
from foundry.store.project_tables import GarbageRow
from foundry.store.queueing import next_job, next_project
from foundry.store.records import Claim, Idempotency, JobInputs, NewVariant, Orders
from foundry.store.settings import Settings
from foundry.store.tables import AttemptRow, JobFileRow, JobRow
from foundry.store.transition import CLAIMABLE, HELD, first_allowed, move, take
from foundry.store.variants import publish
from foundry.store.work import Work, claim_of

_RECONCILE_BATCH = 100
_RING_LIMIT = 1000
_MOST_HALVINGS = 1


class Jobs:
    """Users' methods take a project: another project's job is `NotFound`. Workers' methods take a `Claim`: `LeaseLost`
    is raised, and nothing written, when the job has gone to another attempt."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._work = Work(database, WorkKind.JOB)

    # ------------------------------------------------------------------ for users

    def submit(
        self, project_id: str, spec: JobSpec, inputs: JobInputs, idempotency: Idempotency | None = None,
        parent_id: str | None = None,
    ) -> Job:  # fmt: skip
        """Queue a job, or return the one that the same request made before; raise `QuotaExceeded`."""
        return self._work.submit(project_id, new_id("job"), spec, inputs, idempotency, submitted_of, parent_id)

    def get(self, project_id: str, job_id: str) -> Job:
        """One job; raise `NotFound`."""
        with self._database.read() as session:
            return records_of(session, [self._work.find(session, project_id, job_id)])[0]

    def list(
        self, project_id: str, limit: int = 20, after: str | None = None, status: Status | None = None
    ) -> Page[Job]:
        """Newest first; `after` is the `next` of the page before."""
        query = self._work.of(project_id)
        if status is not None:
            query = query.where(JobRow.status == status.value)
        with self._database.read() as session:
            return page_of(session, query, JobRow.id, limit, after, records_of)

    def events(self, project_id: str, job_id: str, after: int = 0, limit: int = 100) -> Sequence[JobEvent]:
        """The events that follow number `after`, in order; raise `NotFound`."""
        return self._work.events(project_id, job_id, after, limit)

    def attempts(self, project_id: str, job_id: str) -> Sequence[Attempt]:
        """Every claim of the job, oldest first; raise `NotFound`."""
        with self._database.read() as session:
            self._work.find(session, project_id, job_id)
            rows = session.scalars(select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.attempt))
            return [attempt_of(row) for row in rows]

    def inputs(self, project_id: str, job_id: str) -> JobInputs:
        """What the teacher and data of a job were resolved to; raise `NotFound`."""
        with self._database.read() as session:
            return JobInputs.model_validate(self._work.find(session, project_id, job_id).inputs)

    def cancel(self, project_id: str, job_id: str) -> Job:
        """Ask for the end of a job; one that no worker has is cancelled at once. Asking twice is no error."""
        return self._order(project_id, job_id, "cancel")

    def pause(self, project_id: str, job_id: str) -> Job:
        """Ask a job to stop with a checkpoint; one that no worker has is paused at once. Asking twice is no error."""
        return self._order(project_id, job_id, "pause")

    def resume(self, project_id: str, job_id: str) -> Job:
        """Queue a paused job again, with all its attempts before it."""
        return self._order(project_id, job_id, "resume")

    def _order(self, project_id: str, job_id: str, verb: str) -> Job:
        self._work.order(project_id, job_id, verb)
        return self.get(project_id, job_id)

    # ------------------------------------------------------------------ for workers

    def claim(self, worker: str, job_id: str | None = None, *, memory_bytes: int | None = None) -> Claim | None:
        """Take this queued job, or the one whose turn it is (queueing.py); None when there is none to take.

        `memory_bytes` is what this worker has: a job that needs more, by its estimate, is left to another.
        """
        if job_id is not None:
            with self._database.write() as session:
                return self._claimed(session, worker, job_id)
        passed: set[str] = set()
        while True:
            with self._database.write() as session:  # one project a transaction: who waits for two can wait for ever
                project_id = next_project(session, passed)
                if project_id is None:
                    return None
                chosen = next_job(session, project_id, memory_bytes)
                claim = self._claimed(session, worker, chosen) if chosen else None
                if claim is not None:
                    return claim
            passed.add(project_id)

    def _claimed(self, session: Session, worker: str, job_id: str) -> Claim | None:
        job = take(session, worker, self._settings.lease_s, job_id)
        return claim_of(job, worker) if job else None

    def heartbeat(self, claim: Claim) -> Orders:
        """Keep the job for another lease and learn what the user asked."""
        beat = (
            update(JobRow)
            .where(JobRow.id == claim.job_id, JobRow.epoch == claim.epoch, JobRow.status.in_(HELD))
            .values(lease_until=db_now() + self._settings.lease_s)
            .returning(JobRow.status)
        )
        with self._database.write() as session:
            status = session.scalar(beat)
        if status is None:
            raise _lost(claim)
        return _orders(status)

    def append(self, claim: Claim, said: Sequence[RunEvent]) -> Orders:
        """Add what the run said to the history, show it on the job, and learn what the user asked."""
        if foreign := [event.type for event in said if event.type not in history.RUN_EVENTS]:
            raise ValueError(f"a run cannot say {foreign[0]}: that event belongs to a transition")
        with self._database.write() as session:
            job = _held(session, claim)
            for event in said:
                history.follow(session, job, event)
            history.append(session, job, said, _now(session))
            return _orders(job.status)

    def keep_files(self, claim: Claim, folder: str, files: Sequence[Artifact]) -> None:
        """Let these be all the files that the job has under `folder`; their bytes are in the artifact store."""
        with self._database.write() as session:
            _held(session, claim)
            old = (JobFileRow.job_id == claim.job_id, JobFileRow.path.startswith(f"{folder}/", autoescape=True))
            for sha256 in session.scalars(select(JobFileRow.sha256).where(*old)).all():
                insert_if_absent(session, GarbageRow, sha256=sha256, since=db_now())
            session.execute(delete(JobFileRow).where(*old))
            session.add_all(JobFileRow(job_id=claim.job_id, path=f.path, bytes=f.bytes, sha256=f.sha256) for f in files)

    def succeed(self, claim: Claim, variants: Sequence[NewVariant] = (), result: Any = None) -> Job | Evaluation:
        """Publish the variants of a job, or keep the result of an evaluation, and end it: all at once or not at all."""
        with self._database.write() as session:
            job = _held(session, claim)
            first_allowed(job, "succeed", Status.SUCCEEDED)
            now = _now(session)
            published = [publish(session, job, new, now) for new in variants]
            for variant in published:
                data = {"variant_id": variant.id, "target": variant.target, "bytes": variant.bytes}
                message = f"variant {variant.id} for {variant.target}"
                history.append(
                    session, job, [RunEvent(type=EventType.VARIANT_PUBLISHED, message=message, data=data)], now
                )
            if job.kind == WorkKind.EVALUATION:
                job.result = result
                move(session, job, Status.SUCCEEDED, "succeeded", now=now)
                return evaluation_of(job)
            message = f"succeeded with {len(published)} variant{'' if len(published) == 1 else 's'}"
            move(session, job, Status.SUCCEEDED, message, now=now, data={"variant_ids": [v.id for v in published]})
        return self._standing(claim)

    def fail(self, claim: Claim, reason: Reason) -> Job | Evaluation:
        """End the job; it is not tried again."""
        return self._end(claim, Status.FAILED, reason.message, reason)

    def cancelled(self, claim: Claim) -> Job | Evaluation:
        """The run has stopped as the user asked."""
        return self._end(claim, Status.CANCELLED, "stopped as asked")

    def paused(self, claim: Claim, reason: Reason | None = None) -> Job | Evaluation:
        """The run has stopped and can be resumed; `reason` when it was not the user who asked."""
        return self._end(claim, Status.PAUSED, reason.message if reason else "stopped as asked", reason)

    def release(self, claim: Claim, message: str) -> Job | Evaluation:
        """Let go of a run that stopped in good order: back to the queue, or paused or cancelled when that was asked.

        Costs no attempt.
        """
        with self._database.write() as session:
            job = _held(session, claim)
            goal = first_allowed(job, "be released", Status.QUEUED, Status.PAUSED, Status.CANCELLED)
            outcome = "released" if goal is Status.QUEUED else None
            move(session, job, goal, message, now=_now(session), outcome=outcome)
        return self._standing(claim)

    def lose(self, claim: Claim, message: str, *, code: str = "attempts_spent") -> Job | Evaluation:
        """The run ended as it should not: try again, or fail with `code` when too many attempts got nowhere."""
        with self._database.write() as session:
            self._lose(session, _held(session, claim), message, code)
        return self._standing(claim)

    def starve(self, claim: Claim, message: str) -> Job | Evaluation:
        """The run ran out of memory: once more with micro-batches of half the size, then fail. Costs no attempt."""
        with self._database.write() as session:
            job = _held(session, claim)
            if job.status == Status.RUNNING and job.halvings >= _MOST_HALVINGS:
                reason = Reason(code="out_of_memory", message=f"{message}; smaller micro-batches were of no help")
                move(session, job, Status.FAILED, reason.message, now=_now(session), reason=reason, outcome="lost")
            else:
                job.halvings += 1
                goal = first_allowed(job, "be lost", Status.QUEUED, Status.PAUSED, Status.CANCELLED)
                event = EventType.ATTEMPT_LOST if goal is Status.QUEUED else None
                message += "; once more with micro-batches of half the size"
                move(session, job, goal, message, now=_now(session), event=event, outcome="lost")
        return self._standing(claim)

    def reconcile(self) -> Sequence[str]:
        """Free the jobs of workers that fell silent; return the queued jobs, oldest first, for whom to ring again."""
        expired = (JobRow.status.in_(HELD), JobRow.lease_until < db_now())
        with self._database.read() as session:
            silent = session.scalars(select(JobRow.id).where(*expired).limit(_RECONCILE_BATCH)).all()
        for job_id in silent:
            with self._database.write() as session:
                query = select(JobRow).where(JobRow.id == job_id, *expired).with_for_update(skip_locked=True)
                if (job := session.scalar(query)) is not None:
                    self._lose(
                        session, job, f"worker {job.worker} fell silent for longer than its lease", "attempts_spent"
                    )
        waiting = select(JobRow.id).where(JobRow.status.in_(CLAIMABLE)).order_by(JobRow.id).limit(_RING_LIMIT)
        with self._database.read() as session:
            return session.scalars(waiting).all()

    def terminal_among(self, job_ids: Sequence[str]) -> frozenset[str]:
        """Those of these jobs that have ended: their work folders are of no more use."""
        ended = [status.value for status in Status if status.is_terminal]
        with self._database.read() as session:
            return frozenset(session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.status.in_(ended))))

    def _standing(self, claim: Claim) -> Job | Evaluation:
        with self._database.read() as session:
            row = session.get_one(JobRow, claim.job_id)
            return evaluation_of(row) if row.kind == WorkKind.EVALUATION else records_of(session, [row])[0]

    def _end(self, claim: Claim, goal: Status, message: str, reason: Reason | None = None) -> Job | Evaluation:
        with self._database.write() as session:
            move(session, _held(session, claim), goal, message, now=_now(session), reason=reason)
        return self._standing(claim)

    def _lose(self, session: Session, job: JobRow, message: str, code: str) -> None:
        attempt = session.get_one(AttemptRow, (job.id, job.epoch))
        job.fruitless_attempts = 0 if attempt.progressed else job.fruitless_attempts + 1
        if job.status == Status.RUNNING and job.fruitless_attempts >= self._settings.max_attempts:
            message = f"{job.fruitless_attempts} attempts one after the other made no progress. The last: {message}"
            reason = Reason(code=code, message=message)
            move(session, job, Status.FAILED, message, now=_now(session), reason=reason, outcome="lost")
            return
        goal = first_allowed(job, "be lost", Status.QUEUED, Status.PAUSED, Status.CANCELLED)
        event = EventType.ATTEMPT_LOST if goal is Status.QUEUED else None
        move(session, job, goal, message, now=_now(session), event=event, outcome="lost")


def _claim_of(job: JobRow | None, worker: str) -> Claim | None:
    if job is None:
        return None
    return Claim(
        job_id=job.id, project_id=job.project_id, epoch=job.epoch, worker=worker, halvings=job.halvings,
        spec=JobSpec.model_validate(job.spec), inputs=JobInputs.model_validate(job.inputs),
    )  # fmt: skip


def _now(session: Session) -> float:
    return session.scalars(select(db_now())).one()


def _held(session: Session, claim: Claim) -> JobRow:
    """The claim's job with its row locked; raise `LeaseLost` when this claim does not hold it any more."""
    query = select(JobRow).where(JobRow.id == claim.job_id, JobRow.epoch == claim.epoch, JobRow.status.in_(HELD))
    job = session.scalar(query.with_for_update(key_share=True))
    if job is None:
        raise _lost(claim)
    return job


def _orders(status: str) -> Orders:
    return Orders(cancel=status == Status.CANCELLING, pause=status == Status.PAUSING)


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"attempt {claim.epoch} of job {claim.job_id} by {claim.worker} does not hold the job any more")
