"""Everything a worker needs, put together from the settings; shared by the embedded worker and Celery's tasks."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foundry.store.artifacts import open_artifacts
from foundry.store.database import Database
from foundry.store.datasets import Datasets
from foundry.store.jobs import Jobs
from foundry.store.orphans import Orphans
from foundry.store.outbox import Outbox
from foundry.store.removal import Removal
from foundry.store.settings import Settings
from foundry.store.uploads import Uploads
from workers.supervisor import RUN, StopSignal, Supervisor


@dataclass(frozen=True, kw_only=True)
class Station:
    """One process's connections. Not to be used in a process forked from the one that opened it."""

    name: str
    """Of the worker, as attempts and events show it."""
    settings: Settings
    database: Database
    jobs: Jobs
    supervisor: Supervisor
    outbox: Outbox
    sweeps: Sequence[Callable[[], None]]
    """Remove what is over; safe to do by several workers at once."""


def open_station(settings: Settings, stopping: StopSignal) -> Station:
    """Connect; raise `DatabaseUnavailable` when the database is not there or not migrated."""
    database = Database(settings.database_url)
    database.ping()
    artifacts = open_artifacts(settings)
    jobs = Jobs(database, settings)
    supervisor = Supervisor(
        settings, jobs, Datasets(database, artifacts), artifacts, stopping=stopping, command=settings.run_command or RUN
    )
    name = f"{socket.gethostname()}:{os.getpid()}"
    return Station(
        name=name, settings=settings, database=database, jobs=jobs, supervisor=supervisor, outbox=Outbox(database),
        sweeps=(
            Uploads(database, settings).sweep, Removal(database, artifacts, settings).sweep, artifacts.sweep,
            Orphans(database, artifacts).sweep,
        ),
    )  # fmt: skip
