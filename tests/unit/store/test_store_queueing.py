"""Whose turn it is: projects share, priorities order, limits hold, memory is asked for."""

import threading

import pytest

from foundry.spec.access import Quota
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.keys import Keys
from foundry.store.projects import Projects
from tests import factories


@pytest.fixture
def other_id(database: Database, project_id: str) -> str:
    """A second project."""
    return factories.project(database, "other")


def submit(jobs: Jobs, project_id: str, *, priority: int = 0, memory_bytes: int | None = None) -> str:
    inputs = factories.inputs(memory_bytes=memory_bytes)
    return jobs.submit(project_id, factories.spec(priority=priority), inputs).id


def claimed(jobs: Jobs, count: int, memory_bytes: int | None = None) -> list[str | None]:
    claims = [jobs.claim("worker", memory_bytes=memory_bytes) for _ in range(count)]
    return [claim.job_id if claim else None for claim in claims]


def limit(database: Database, project_id: str, running_jobs: int) -> None:
    Projects(database, Keys(database, b"secret")).set_quota(project_id, Quota(running_jobs=running_jobs))


def test_the_higher_priority_goes_first_and_the_older_of_equals(jobs: Jobs, project_id: str) -> None:
    low, first, second = submit(jobs, project_id, priority=-1), submit(jobs, project_id), submit(jobs, project_id)
    urgent = submit(jobs, project_id, priority=5)
    assert claimed(jobs, 5) == [urgent, first, second, low, None]


def test_a_projects_hundred_jobs_delay_anothers_single_job_by_one(jobs: Jobs, project_id: str, other_id: str) -> None:
    many = [submit(jobs, project_id, priority=100) for _ in range(4)]
    single = submit(jobs, other_id, priority=-100)
    assert set(claimed(jobs, 2)) == {many[0], single}
    assert claimed(jobs, 4) == [*many[1:], None]


def test_projects_take_turns_on_one_worker(jobs: Jobs, project_id: str, other_id: str) -> None:
    """Nothing runs at the moment of any claim, so only the last turn tells them apart."""
    ids = {p: [submit(jobs, p) for _ in range(3)] for p in (project_id, other_id)}
    order = []
    for _ in range(6):
        claim = jobs.claim("worker")
        assert claim is not None
        order.append(claim.project_id)
        jobs.cancel(claim.project_id, claim.job_id)
        jobs.cancelled(claim)
    assert order[0::2] == [order[0]] * 3 and order[1::2] == [order[1]] * 3 and set(order) == set(ids)


def test_no_more_of_a_project_run_than_it_may(jobs: Jobs, database: Database, project_id: str, other_id: str) -> None:
    limit(database, project_id, 1)
    first, second = submit(jobs, project_id), submit(jobs, project_id)
    foreign = submit(jobs, other_id)
    assert set(claimed(jobs, 3)) == {first, foreign, None}
    jobs.cancel(project_id, first)
    assert claimed(jobs, 1) == [None]  # it still runs until its worker has let go
    jobs.cancelled(claim_of(jobs, project_id, first))
    assert claimed(jobs, 1) == [second]


def claim_of(jobs: Jobs, project_id: str, job_id: str) -> factories.Claim:
    job = jobs.get(project_id, job_id)
    return factories.Claim(
        job_id=job_id, project_id=project_id, epoch=job.attempt, worker="worker", spec=job.spec,
        inputs=jobs.inputs(project_id, job_id),
    )  # fmt: skip


def test_the_limit_holds_when_eight_workers_claim_at_once(jobs: Jobs, database: Database, project_id: str) -> None:
    limit(database, project_id, 2)
    for _ in range(8):
        submit(jobs, project_id)
    start, found = threading.Barrier(8), []

    def work() -> None:
        start.wait()
        found.append(jobs.claim("worker"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in found) == 2


def test_a_job_that_needs_more_memory_is_left_to_a_larger_worker(jobs: Jobs, project_id: str) -> None:
    large, unknown = submit(jobs, project_id, memory_bytes=80 * 10**9), submit(jobs, project_id)
    small = submit(jobs, project_id, memory_bytes=10**9)
    assert claimed(jobs, 3, memory_bytes=24 * 10**9) == [unknown, small, None]
    assert claimed(jobs, 1, memory_bytes=80 * 10**9) == [large]


def test_a_worker_that_is_too_small_for_one_project_goes_on_to_the_next(
    jobs: Jobs, project_id: str, other_id: str
) -> None:
    submit(jobs, project_id, memory_bytes=80 * 10**9)
    fits = submit(jobs, other_id, memory_bytes=1)
    assert claimed(jobs, 2, memory_bytes=10) == [fits, None]


def test_a_queued_job_says_its_place_and_a_claimed_one_does_not(jobs: Jobs, project_id: str, other_id: str) -> None:
    mine = [submit(jobs, project_id) for _ in range(3)]
    theirs = submit(jobs, other_id)
    places = {job_id: jobs.get(project_id, job_id).queue_position for job_id in mine}
    places[theirs] = jobs.get(other_id, theirs).queue_position
    assert sorted(places.values()) == [1, 2, 3, 4]
    assert places[theirs] in (1, 2) and places[mine[0]] in (1, 2) and places[mine[1]] == 3
    first = jobs.claim("worker")
    assert first is not None and jobs.get(first.project_id, first.job_id).queue_position is None


def test_expected_start_is_known_once_a_job_has_been_timed(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    waiting = submit(jobs, project_id)
    assert jobs.get(project_id, waiting).expected_start_at is None
    jobs.succeed(claim, [factories.new_variant()])
    job = jobs.get(project_id, waiting)
    assert job.expected_start_at is not None and job.expected_start_at >= job.created_at


def test_want_of_memory_is_tried_once_more_with_half_the_micro_batch_and_costs_no_attempt(
    jobs: Jobs, project_id: str
) -> None:
    job = jobs.submit(project_id, factories.spec(), factories.inputs())
    first = jobs.claim("worker", job.id)
    assert first is not None and first.halvings == 0
    assert jobs.starve(first, "too little memory").status == "queued"
    second = jobs.claim("worker", job.id)
    assert second is not None and second.halvings == 1
    failed = jobs.starve(second, "too little memory")
    assert failed.status == "failed" and failed.status_reason is not None
    assert failed.status_reason.code == "out_of_memory" and "too little memory" in failed.status_reason.message


def test_resuming_on_a_larger_machine_begins_with_whole_micro_batches_again(jobs: Jobs, project_id: str) -> None:
    claim = factories.running(jobs, project_id)
    jobs.starve(claim, "too little memory")
    jobs.pause(project_id, claim.job_id)
    jobs.resume(project_id, claim.job_id)
    again = jobs.claim("worker", claim.job_id)
    assert again is not None and again.halvings == 0
