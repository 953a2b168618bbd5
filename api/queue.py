"""The doorbell: tells Celery's workers that a job waits. A lost ring costs time, never a job: the row is the truth."""

from functools import cache
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from celery import Celery

_log = structlog.get_logger()
_PATIENCE_S = 2.0
"""A broker that takes longer than this is as good as down: the workers' own loop finds the job."""

_ONCE_MORE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""The connection that is kept open may be from before the broker's restart."""


def ring(broker_url: str | None, job_id: str) -> None:
    """Send the job's id to the workers; without a broker they poll. Never raises."""
    if broker_url is None:
        return
    try:
        _celery(broker_url).send_task(
            "workers.tasks.customize", args=[job_id], ignore_result=True, retry_policy=_ONCE_MORE
        )
    except Exception as error:  # kombu raises whatever its transport raises, and the job is safe in any case
        _log.warning(
            "the broker was not reached; workers will find the job by themselves", job_id=job_id, error=repr(error)
        )


@cache
def _celery(broker_url: str) -> "Celery":
    from celery import Celery  # half a second to import, and only needed where a broker is set

    app = Celery(broker=broker_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        task_ignore_result=True,
        broker_connection_timeout=_PATIENCE_S,
        broker_transport_options={
            "socket_connect_timeout": _PATIENCE_S, "socket_timeout": _PATIENCE_S, "max_retries": 0,
            "retry_on_timeout": False,
        },
    )  # fmt: skip
    return app
