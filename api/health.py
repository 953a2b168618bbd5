"""/healthz and /readyz: whether this process lives, and whether it can serve."""

import shutil
from http import HTTPStatus

from apiflask import APIBlueprint

from api.state import State, state
from foundry.errors import OperatorError
from foundry.spec.resources import Resource

health = APIBlueprint("health", __name__)
LEAST_FREE_BYTES = 2**28
"""Below this an upload or a variant would soon fail half-way."""


class Alive(Resource):
    """The process answers."""

    status: str


class Readiness(Resource):
    """Each thing the service needs: `ok`, or what is wrong."""

    status: str
    checks: dict[str, str]


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
    folder = memory.settings.artifacts
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"the folder of the artifacts cannot be used: {error.strerror}"
    return "ok" if free >= LEAST_FREE_BYTES else f"storage_full: {free:,} bytes free"
