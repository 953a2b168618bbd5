"""Whose turn it is. Projects share the workers fairly; within a project priority decides, then age.

Of the projects that wait and may run one more job, the one with the fewest runs is next; of several, the one whose last
turn is longest ago. So a project that queues a thousand jobs delays another's single job by one run, not by a thousand.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median

from sqlalchemy import bindparam, exists, func, select
from sqlalchemy.orm import Session

from foundry.spec.access import Quota
from foundry.spec.lifecycle import Status
from foundry.store.database import db_now
from foundry.store.tables import AttemptRow, JobRow, ProjectRow
from foundry.store.transition import CLAIMABLE, HELD

_WAITING = [status.value for status in CLAIMABLE]
_HELD = [status.value for status in HELD]
_LATEST = 20
_MOST_QUEUED = 1000
_JOBS, _ATTEMPTS, _PROJECTS = JobRow.__table__.c, AttemptRow.__table__.c, ProjectRow.__table__.c
_BEYOND_MOST = select(_JOBS.id).where(_JOBS.status.in_(_WAITING)).order_by(_JOBS.id).offset(_MOST_QUEUED).limit(1)
"""One queued job more than are placed, by the index alone: reading a thousand to find that out is dear."""
_QUEUED = select(_JOBS.id, _JOBS.project_id, _JOBS.priority, _JOBS.created_at).where(_JOBS.status.in_(_WAITING))
_RUNS = select(_JOBS.project_id).where(_JOBS.status.in_(_HELD))
_LAST_TURNS = select(_PROJECTS.id, _PROJECTS.last_claim_at).where(_PROJECTS.id.in_(bindparam("ids", expanding=True)))
_LASTED = (
    select(_JOBS.finished_at - _JOBS.started_at).where(_JOBS.status == Status.SUCCEEDED.value)
    .order_by(_JOBS.id.desc()).limit(_LATEST)
)  # fmt: skip
_BEGUN = (
    select(_ATTEMPTS.started_at).join(JobRow.__table__, _JOBS.id == _ATTEMPTS.job_id)
    .where(_JOBS.status.in_(_HELD), _ATTEMPTS.attempt == _JOBS.epoch)
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a queued job stands; `starts_at` in seconds since 1970, None where no run has been timed."""

    position: int
    starts_at: float | None


def next_project(session: Session, passed: Collection[str]) -> str | None:
    """The project whose turn it is, apart from those `passed`, with its row locked; None when none may run more.

    The lock makes claims of one project come one after the other, so that two workers cannot both take its last slot.
    """
    waits = exists().where(JobRow.project_id == ProjectRow.id, JobRow.status.in_(_WAITING))
    projects = session.scalars(select(ProjectRow).where(waits, ProjectRow.id.not_in(passed))).all()
    running = _running(session)
    willing = [project for project in projects if _may_run_more(project, running)]
    if not willing:
        return None
    chosen = min(willing, key=lambda p: (running[p.id], p.last_claim_at or 0.0, p.id))
    session.refresh(chosen, with_for_update={"key_share": True})
    return chosen.id


def next_job(session: Session, project_id: str, memory_bytes: int | None) -> str | None:
    """The first queued job of a project locked before that fits into so much memory; None when there is none, or when
    another worker has taken the last slot meanwhile."""
    if not _may_run_more(session.get_one(ProjectRow, project_id), _running(session)):
        return None
    fits = [JobRow.project_id == project_id, JobRow.status.in_(_WAITING)]
    if memory_bytes is not None:
        fits.append((JobRow.memory_bytes <= memory_bytes) | JobRow.memory_bytes.is_(None))
    highest = select(func.max(JobRow.priority)).where(*fits).scalar_subquery()
    query = select(JobRow.id).where(*fits, JobRow.priority == highest).order_by(JobRow.created_at, JobRow.id)
    return session.scalar(query.limit(1).with_for_update(skip_locked=True))


def places(session: Session) -> Mapping[str, Place]:
    """Every queued job's place, as if each run took as long as the latest did and workers stayed as many as they are.

    Empty when more than 1,000 jobs are queued: nobody waits for an exact place there.
    """
    if session.connection().execute(_BEYOND_MOST).first() is not None:
        return {}
    queued = session.connection().execute(_QUEUED).all()
    lines: dict[str, list[str]] = defaultdict(list)
    for job_id, project_id, *_ in sorted(queued, key=lambda row: (-row.priority, row.created_at, row.id)):
        lines[project_id].append(job_id)
    order = _turns(session, lines)
    return {job_id: Place(number, at) for number, (job_id, at) in enumerate(_timed(session, order), start=1)}


def _turns(session: Session, lines: Mapping[str, list[str]]) -> list[str]:
    """Jobs in the order in which projects would get their turns."""
    running = _running(session)
    projects = session.connection().execute(_LAST_TURNS, {"ids": list(lines)})
    turns = [(running[project_id], last_claim_at or 0.0, project_id, 0) for project_id, last_claim_at in projects]
    heapq.heapify(turns)
    order: list[str] = []
    while turns:
        runs, _, project_id, place = heapq.heappop(turns)
        order.append(lines[project_id][place])
        if place + 1 < len(lines[project_id]):
            heapq.heappush(turns, (runs + 1, float("inf"), project_id, place + 1))
    return order


def _timed(session: Session, order: list[str]) -> list[tuple[str, float | None]]:
    """Each job with the moment at which a run of now or of a job before it would have ended."""
    seconds = [s for s in session.connection().scalars(_LASTED) if s is not None]
    if not seconds:
        return [(job_id, None) for job_id in order]
    started = session.connection().scalars(_BEGUN).all()
    run_s, now = median(seconds), session.scalars(select(db_now())).one()
    free_at = [max(now, at + run_s) for at in started] or [now]
    heapq.heapify(free_at)
    found: list[tuple[str, float | None]] = []
    for job_id in order:
        starts_at = heapq.heappop(free_at)
        heapq.heappush(free_at, starts_at + run_s)
        found.append((job_id, starts_at))
    return found


def _running(session: Session) -> Counter[str]:
    return Counter(session.connection().scalars(_RUNS))


def _may_run_more(project: ProjectRow, running: Mapping[str, int]) -> bool:
    most = Quota.model_validate(project.quota).running_jobs
    return most is None or running[project.id] < most
