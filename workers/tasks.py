"""What Celery calls. A few lines: everything happens in supervisor.py."""

import os
from functools import cache

import structlog

from foundry.errors import OperatorError
from workers.app import app, settings, stopping
from workers.station import Station, open_station

_log = structlog.get_logger()


@app.task(name="workers.tasks.customize")  # type: ignore[untyped-decorator]
def customize(job_id: str) -> None:
    """Somebody rang because of a job: carry out the one whose turn it is, and go on until there is none.

    Going on spares the job that waited for a free slot of its project a third of a lease.
    """
    while not stopping.is_set():
        try:
            station = _station_of(os.getpid())
            claim = station.jobs.claim(station.name, memory_bytes=settings.memory_bytes)
        except OperatorError as error:
            _log.warning("no job can be claimed now; they stay queued", rung_for=job_id, error=error.message)
            return
        if claim is None:
            return
        station.supervisor.run(claim)


@cache
def _station_of(process_id: int) -> Station:
    """Connections belong to the process that opened them: a forked pool gets its own."""
    return open_station(settings, stopping)
