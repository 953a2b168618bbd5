"""A job's report, kept by the service whenever a run of the job has ended, however it ended."""

from pathlib import Path

import structlog

from foundry.engine.journal import CANCELLED, FAILED, Journal
from foundry.engine.report.make import FOLDER, make_report
from foundry.engine.workspace import Workspace
from foundry.errors import LeaseLost
from foundry.spec.job import JobSpec
from foundry.spec.variant import Artifact
from foundry.store.artifacts import ArtifactStore
from foundry.store.jobs import Jobs
from foundry.store.records import Claim, Orders
from workers.ending import Ending, Fail, Lose, Publish

_log = structlog.get_logger()


def keep_report(root: Path, claim: Claim, ending: Ending, orders: Orders, jobs: Jobs, artifacts: ArtifactStore) -> None:
    """Store the report that the run has made, or make one of what the run has left: a run that was killed made none.

    No job fails for its report: what goes wrong is logged. Raises `LeaseLost` alone.
    """
    workspace = Workspace(root)
    if not isinstance(claim.spec, JobSpec) or not (root / "spec.json").is_file():
        return
    try:
        if not isinstance(ending, Publish):
            _note(workspace, ending, orders)
            make_report(workspace)
        if not (root / FOLDER).is_dir():
            return  # the run could not make it, and has said why
        blobs = {path: artifacts.put(path) for path in sorted((root / FOLDER).iterdir()) if path.is_file()}
        files = [
            Artifact(path=f"{FOLDER}/{path.name}", bytes=blob.bytes, sha256=blob.sha256) for path, blob in blobs.items()
        ]
        jobs.keep_files(claim, FOLDER, files)
    except LeaseLost:
        raise
    except Exception:
        _log.exception("the report is not kept")


def _note(workspace: Workspace, ending: Ending, orders: Orders) -> None:
    """Why the run ended, for its report: one that was killed could not say so itself."""
    if isinstance(ending, Fail | Lose):
        Journal(workspace).note(FAILED, ending.reason.message, level="error")
    elif orders.cancel:
        Journal(workspace).note(CANCELLED, "cancelled by the user")
