"""What every view works with: the stores, opened once for each process."""

from dataclasses import dataclass

from flask import current_app

from api.streams import Streams
from foundry.store.artifacts import ArtifactStore, LocalArtifacts
from foundry.store.database import Database
from foundry.store.datasets import Datasets
from foundry.store.jobs import Jobs
from foundry.store.keys import Keys, read_or_make_secret
from foundry.store.settings import Settings
from foundry.store.variants import Variants

_NAME = "foundry"


@dataclass(frozen=True, kw_only=True)
class State:
    """The memory behind the service; safe to share between threads."""

    settings: Settings
    database: Database
    artifacts: ArtifactStore
    keys: Keys
    datasets: Datasets
    jobs: Jobs
    variants: Variants
    streams: Streams


def open_state(settings: Settings) -> State:
    """Connects to nothing yet: the service starts while its database is still starting."""
    database = Database(settings.database_url)
    artifacts = LocalArtifacts(settings.artifacts)
    return State(
        settings=settings,
        database=database,
        artifacts=artifacts,
        keys=Keys(database, read_or_make_secret(settings.home / "secret")),
        datasets=Datasets(database, artifacts),
        jobs=Jobs(database, settings),
        variants=Variants(database, artifacts),
        streams=Streams(),
    )


def state() -> State:
    """The state of the app that answers the running request."""
    found: State = current_app.extensions[_NAME]
    return found
