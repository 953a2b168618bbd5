"""Two workers, a user, and a broker that drops, repeats and reorders: whatever happens in whatever order, the history
of a job is one that the transition table allows, and no attempt writes after its time."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import update

from foundry.errors import IllegalTransition, LeaseLost
from foundry.spec.lifecycle import TRANSITIONS, EventType, Status
from foundry.spec.resources import Reason
from foundry.store.database import Database, db_now
from foundry.store.jobs import Jobs
from foundry.store.records import Claim
from foundry.store.tables import JobRow
from tests import factories
from tests.chaos.invariants import violations

WORKERS = ("worker-1", "worker-2")
HELD = {Status.RUNNING, Status.PAUSING, Status.CANCELLING}


class Lives(RuleBasedStateMachine):
    """What the store says is compared with a model of a few lines: who holds what, and which status came from which."""

    jobs_made = Bundle("jobs_made")
    template: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.database = Database(f"sqlite:///{shutil.copy(self.template, self.folder / 'foundry.db')}")
        self.jobs = Jobs(self.database, factories.settings(self.folder))
        self.project_id = factories.project(self.database)
        self.rings: list[str] = []
        self.claims: list[Claim] = []
        """Every claim ever given, the old ones too: a worker that was frozen acts on what it once had."""
        self.newest: dict[str, int] = {}
        self.seen: dict[str, Status] = {}

    @rule(target=jobs_made)
    def submit(self) -> str:
        job = self.jobs.submit(self.project_id, factories.spec(), factories.inputs())
        self.rings.append(job.id)
        self.seen[job.id] = Status.QUEUED
        return job.id

    @rule(job_id=jobs_made, verb=st.sampled_from(["cancel", "pause", "resume"]))
    def user_asks(self, job_id: str, verb: str) -> None:
        try:
            job = getattr(self.jobs, verb)(self.project_id, job_id)
        except IllegalTransition:
            return
        if job.status is Status.QUEUED:
            self.rings.append(job_id)

    @rule(data=st.data(), worker=st.sampled_from(WORKERS), repeated=st.booleans())
    def broker_delivers(self, data: st.DataObject, worker: str, repeated: bool) -> None:
        """Any ring, not the oldest; perhaps it comes once more later."""
        if self.rings:
            place = data.draw(st.integers(0, len(self.rings) - 1))
            self._take(worker, self.rings[place] if repeated else self.rings.pop(place))

    @rule(data=st.data())
    def broker_drops(self, data: st.DataObject) -> None:
        if self.rings:
            self.rings.pop(data.draw(st.integers(0, len(self.rings) - 1)))

    @rule(worker=st.sampled_from(WORKERS))
    def worker_polls(self, worker: str) -> None:
        self._take(worker, None)

    @rule(
        data=st.data(),
        act=st.sampled_from(["heartbeat", "append", "succeed", "fail", "release", "lose", "starve", "paused"]),
    )
    def worker_acts(self, data: st.DataObject, act: str) -> None:
        """With any claim that was ever given; only the newest of a job that is held may be heard."""
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        holds = self._status(claim.job_id) in HELD and self.newest[claim.job_id] == claim.epoch
        try:
            self._act(act, claim)
        except LeaseLost:
            assert not holds
        except IllegalTransition:
            assert holds
        else:
            assert holds, f"attempt {claim.epoch} was heard, though it does not hold the job"

    @rule(data=st.data())
    def lease_ends(self, data: st.DataObject) -> None:
        """The worker is silent, for it is dead or frozen; the next loop of any worker frees the job."""
        held = [claim for claim in self.claims if self._status(claim.job_id) in HELD]
        if held:
            job_id = data.draw(st.sampled_from(held)).job_id
            with self.database.write() as session:
                session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=db_now() - 1))

    @rule()
    def reconcile(self) -> None:
        self.rings.extend(self.jobs.reconcile())

    @invariant()
    def statuses_follow_the_table(self) -> None:
        for job_id, before in list(getattr(self, "seen", {}).items()):
            now = self._status(job_id)
            assert now is before or self._reachable(before, now), f"{before} became {now}"
            self.seen[job_id] = now

    @invariant()
    def histories_keep_every_promise(self) -> None:
        if hasattr(self, "database"):
            with self.database.read() as session:
                assert violations(session.connection(), (), ended=False) == []

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()
            shutil.rmtree(self.folder)

    def _take(self, worker: str, job_id: str | None) -> None:
        waiting = [j for j in ([job_id] if job_id else self.seen) if self._status(j) is Status.QUEUED]
        claim = self.jobs.claim(worker, job_id)
        if claim is None:
            assert not waiting
            return
        assert claim.epoch == self.newest.get(claim.job_id, 0) + 1
        self.newest[claim.job_id] = claim.epoch
        self.claims.append(claim)
        self.seen[claim.job_id] = Status.RUNNING

    def _act(self, act: str, claim: Claim) -> None:
        if act == "append":
            step = factories.said(EventType.CHECKPOINT, stage="distill", step=claim.epoch)
            self.jobs.append(claim, [step])
        elif act == "succeed":
            self.jobs.succeed(claim, [factories.new_variant()])
        elif act == "fail":
            self.jobs.fail(claim, Reason(code="user_error", message="wrong"))
        elif act == "paused":
            self.jobs.paused(claim, Reason(code="storage_full", message="full"))
        elif act == "heartbeat":
            self.jobs.heartbeat(claim)
        else:
            getattr(self.jobs, act)(claim, "the run ended")

    def _status(self, job_id: str) -> Status:
        return self.jobs.get(self.project_id, job_id).status

    def _reachable(self, before: Status, now: Status) -> bool:
        """One rule moves a job by one row of the table; a claim by reconcile and take by two at most."""
        return any(now in TRANSITIONS[middle] for middle in {before, *TRANSITIONS[before]})


@pytest.fixture
def machine(migrated_sqlite: Path) -> type[Lives]:
    """The machine with a database to copy."""
    Lives.template = migrated_sqlite
    return Lives


def test_every_order_of_events_keeps_the_promises(machine: type[Lives]) -> None:
    limits = settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=limits)
