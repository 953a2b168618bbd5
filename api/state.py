"""What every view works with: the stores, opened once for each process."""

from dataclasses import dataclass

from flask import current_app

from api.streams import Streams
from api.watcher import Watcher
from foundry.store.aliases import Aliases
from foundry.store.artifacts import ArtifactStore, open_artifacts
from foundry.store.database import Database
from foundry.store.datasets import Datasets
from foundry.store.evaluations import Evaluations
from foundry.store.forecasts import Forecasts
from foundry.store.history import History
from foundry.store.idempotency import Requests
from foundry.store.job_files import JobFiles
from foundry.store.jobs import Jobs
from foundry.store.keys import Keys, read_or_make_secret
from foundry.store.measurements import Measurements
from foundry.store.models import Models
from foundry.store.projects import Members, Projects
from foundry.store.removal import Removal
from foundry.store.settings import Settings
from foundry.store.targets import Targets
from foundry.store.uploads import Uploads
from foundry.store.usage import UsageMeter
from foundry.store.variants import Variants
from foundry.store.webhooks import Webhooks

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
    evaluations: Evaluations
    job_files: JobFiles
    history: History
    variants: Variants
    measurements: Measurements
    aliases: Aliases
    uploads: Uploads
    models: Models
    targets: Targets
    webhooks: Webhooks
    projects: Projects
    members: Members
    usage: UsageMeter
    forecasts: Forecasts
    removal: Removal
    requests: Requests
    streams: Streams
    watcher: Watcher


def open_state(settings: Settings) -> State:
    """Connects to nothing yet: the service starts while its database is still starting."""
    database = Database(settings.database_url)
    artifacts = open_artifacts(settings)
    keys = Keys(database, read_or_make_secret(settings.home / "secret"))
    return State(
        settings=settings,
        database=database,
        artifacts=artifacts,
        keys=keys,
        datasets=Datasets(database, artifacts),
        jobs=Jobs(database, settings),
        evaluations=Evaluations(database),
        job_files=JobFiles(database, artifacts),
        history=History(database),
        variants=Variants(database, artifacts),
        measurements=Measurements(database),
        aliases=Aliases(database),
        uploads=Uploads(database, settings),
        models=Models(database, artifacts, settings),
        targets=Targets(database),
        webhooks=Webhooks(database),
        projects=Projects(database, keys),
        members=Members(database),
        usage=UsageMeter(database, settings),
        forecasts=Forecasts(database, settings),
        removal=Removal(database, artifacts, settings),
        requests=Requests(database),
        streams=Streams(),
        watcher=Watcher(database),
    )


def state() -> State:
    """The state of the app that answers the running request."""
    found: State = current_app.extensions[_NAME]
    return found
