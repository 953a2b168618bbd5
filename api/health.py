"""/healthz and /readyz: whether this process lives, and whether it can serve."""

import shutil
from http import HTTPStatus

from apiflask import APIBlueprint

from api.state import State, state
from foundry.errors import OperatorError
from foundry.spec.resources import Resource

health = APIBlueprint("health", __name__)


class Alive(Resource):
    """The process answers."""

    status: str
    """ok."""


class Readiness(Resource):
    """Each thing the service needs: `ok`, or what is wrong."""

    status: str
    """ready or not ready."""
    checks: dict[str, str]
    """`database` and `disk`."""


@health.get("/healthz")
@health.output(Alive)
def alive() -> Alive:
    """Whether the process lives; asks nothing else."""
    return Alive(status="ok")


@health.get("/readyz")
@health.output(Readiness)
def ready() -> tuple[Readiness, int]:
    """Whether requests can be served; 503 with the same body when they cannot."""
    checks = {"database": _database(state()), "disk": _disk(state())}
    is_ready = set(checks.values()) == {"ok"}
    status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return Readiness(status="ready" if is_ready else "not ready", checks=checks), status


def _database(memory: State) -> str:
    try:
        memory.database.ping()
    except OperatorError:
        return "does not answer, or has the schema of another version"
    return "ok"


def _disk(memory: State) -> str:
    """Of artifacts, and of the work folder where it is on this machine."""
    settings = memory.settings
    try:
        settings.artifacts.mkdir(parents=True, exist_ok=True)
        folders = [settings.artifacts, *([settings.work] if settings.work.is_dir() else [])]
        free = {
            name: shutil.disk_usage(folder).free for name, folder in zip(("artifacts", "work"), folders, strict=False)
        }
    except OSError as error:
        return f"the folder of the artifacts cannot be used: {error.strerror}"
    full = [f"{left:,} bytes free for {name}" for name, left in free.items() if left < settings.least_free_bytes]
    return f"storage_full: {', '.join(full)}" if full else "ok"
