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
    """Carry out a job, unless another worker has it or it is over. The job's row says what happened."""
    if stopping.is_set():
        return  # the row stays queued, and another worker rings again
    try:
        station = _station_of(os.getpid())
        claim = station.jobs.claim(station.name, job_id)
    except OperatorError as error:
        _log.warning("the job cannot be claimed now; it stays queued", job_id=job_id, error=error.message)
        return
    if claim is None:
        _log.info("nothing to do: the job is not queued any more", job_id=job_id)
    else:
        station.supervisor.run(claim)


@cache
def _station_of(process_id: int) -> Station:
    """Connections belong to the process that opened them: a forked pool gets its own."""
    return open_station(settings, stopping)
