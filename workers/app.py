"""The Celery app: `celery -A workers.app worker`. The broker is a doorbell; what is true stands in the database.

A message carries a job's id and is acknowledged before the work begins: Celery's own redelivery would start a job of
many hours twice. A lost message costs at most a third of a lease: every idle worker rings again (reconciler.py).
"""

import multiprocessing
from typing import Any

from celery import Celery, signals
from celery.worker import state

from foundry.errors import InvalidSettings
from foundry.store.settings import Settings
from workers import logs
from workers.meters import METERS
from workers.postman import Postman
from workers.reconciler import Reconciler
from workers.station import open_station

settings = Settings.from_env()
if settings.broker_url is None:
    raise InvalidSettings(
        "FOUNDRY_BROKER_URL is not set: Celery needs a broker, for example redis://127.0.0.1:6379/0. "
        "Without one, start workers that poll the database: python -m workers.embedded"
    )

stopping = multiprocessing.get_context("fork").Event()
"""Set when the worker is told to end, in whatever pool its tasks run: threads, or processes forked from this one."""

app = Celery("foundry", broker=settings.broker_url, include=["workers.tasks"])
app.conf.update(
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_concurrency=1,  # one job a machine or accelerator: --concurrency says otherwise
    worker_pool="threads",  # a task only waits for its run, which is a process of its own
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"socket_connect_timeout": 5, "socket_keepalive": True},
)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logs(**_: Any) -> None:
    logs.configure()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_runs(**_: Any) -> None:
    stopping.set()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _start_reconciler(sender: Any, **_: Any) -> None:
    from workers.tasks import customize  # it imports this module

    def ring(job_id: str) -> None:
        customize.apply_async((job_id,), retry=False)

    def is_idle() -> bool:
        return not stopping.is_set() and len(state.reserved_requests) < sender.controller.concurrency

    station = open_station(settings, stopping)
    Reconciler(settings, station.jobs, ring=ring, is_idle=is_idle, sweeps=station.sweeps).start()
    Postman(settings, station.outbox).start()
    METERS.show(settings)
