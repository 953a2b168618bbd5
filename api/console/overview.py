"""The first page: what runs, what waits, what came out, and whether there is room for more."""

import shutil
from typing import NamedTuple

from flask import Blueprint, render_template

from api.auth import caller, needs, project_id
from api.state import State, state
from foundry.spec.access import Scope
from foundry.spec.lifecycle import Status
from foundry.spec.resources import Job
from foundry.store.overview import Overview

overview = Blueprint("overview", __name__)
_SHOWN = 8
_ACTIVE = (Status.RUNNING, Status.PAUSING, Status.CANCELLING)


class Disk(NamedTuple):
    """Where the service keeps work and artifacts."""

    free_bytes: int
    total_bytes: int
    is_low: bool


@overview.get("/")
@needs(Scope.JOBS_READ)
def show() -> str:
    """The project at a glance."""
    scopes, memory, project = caller().scopes, state(), project_id()
    variants = memory.variants.list(project, limit=5).data if Scope.VARIANTS_READ in scopes else ()
    has_data = Scope.DATASETS_READ not in scopes or bool(memory.datasets.list(project, 1).data)
    return render_template("overview.html", **_now(), variants=variants, has_data=has_data, disk=_disk(memory))


@overview.get("/live")
@needs(Scope.JOBS_READ)
def live() -> str:
    """The part of the page that a script keeps up to date."""
    return render_template("fragments/now.html", **_now())


def _now() -> dict[str, object]:
    memory, project = state(), project_id()
    running: list[Job] = []
    for status in _ACTIVE:
        running += memory.jobs.list(project, _SHOWN, status=status).data
    glance = Overview(memory.database)
    return {
        "running": running, "queued": memory.jobs.list(project, _SHOWN, status=Status.QUEUED).data,
        "counts": glance.counts(project), "workers": glance.workers(project, [job.id for job in running]),
        "recent": memory.jobs.list(project, _SHOWN).data,
    }  # fmt: skip


def _disk(memory: State) -> Disk | None:
    """The fuller of the two places; None when they are not to be seen from here."""
    places = [place for place in (memory.settings.work, memory.settings.artifacts) if place.exists()]
    try:
        found = [shutil.disk_usage(place) for place in places or [memory.settings.home]]
    except OSError:
        return None
    least = min(found, key=lambda usage: usage.free)
    return Disk(least.free, least.total, least.free < memory.settings.least_free_bytes)
