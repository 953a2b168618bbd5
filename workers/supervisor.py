"""Carries out one claimed job: a folder, a process, a courier; then what became of it, in one fenced write."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from foundry.engine.export.signature import SigningKey
from foundry.engine.workspace import Workspace
from foundry.errors import (
    ArtifactDamaged,
    DatabaseUnavailable,
    FoundryError,
    IllegalTransition,
    LeaseLost,
    OperatorError,
    StorageFull,
    StorageUnavailable,
)
from foundry.spec.evaluation import Evaluation
from foundry.spec.resources import Job, Reason
from foundry.store.artifacts import ArtifactStore
from foundry.store.datasets import Datasets
from foundry.store.jobs import Jobs
from foundry.store.records import Claim
from foundry.store.settings import Settings
from workers import folders, memory, trades
from workers.courier import Courier
from workers.ending import Ending, Fail, Lose, Pause, Publish, Release, Starve, ending_of
from workers.meters import METERS
from workers.process import RunProcess, run_environment
from workers.relay import Relay
from workers.reports import keep_report
from workers.room import promised_room
from workers.trades import Product

RUN = (sys.executable, "-m", "foundry.engine.run")
_TICK_S = 0.1
_RETRY_S = 1.0
_STACK_S = 1.0
_log = structlog.get_logger()


class StopSignal(Protocol):
    """Set once this worker has to end: `threading.Event`, or one shared between processes."""

    def is_set(self) -> bool: ...


class Supervisor:
    """One worker's way to carry out jobs, one at a time for each call of `run`."""

    def __init__(
        self, settings: Settings, jobs: Jobs, datasets: Datasets, artifacts: ArtifactStore, *,
        stopping: StopSignal, command: Sequence[str] = RUN,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._jobs = jobs
        self._datasets = datasets
        self._artifacts = artifacts
        self._stopping = stopping
        self._command = command
        self._key = SigningKey.read_or_make(settings.signing_key)

    def run(self, claim: Claim) -> None:
        """From the claim to its end. Returns when nothing of the run is left; raises nothing that a job can cause."""
        attempt = METERS.began()
        relay = Relay(also=attempt.hear)
        with (
            structlog.contextvars.bound_contextvars(job_id=claim.job_id, attempt=claim.epoch),
            Courier(self._jobs, claim, relay, self._settings) as courier,
        ):
            _log.info("claimed", worker=claim.worker)
            try:
                ending = self._carry_out(claim, courier, relay)
                root = self._settings.work / claim.job_id / str(claim.epoch)
                keep_report(root, claim, ending, courier.orders, self._jobs, self._artifacts)
                job = self._settle(claim, courier, ending)
            except LeaseLost as error:
                attempt.end("LeaseLost")
                _log.warning("nothing more is written", why=error.message)
                return
            except Exception:
                attempt.end("NotWritten")
                _log.exception("the ending could not be written; the job is freed when the lease ends")
                return
            attempt.end(type(ending).__name__, ending.reason.code if hasattr(ending, "reason") else "")
            _log.info("settled", ending=type(ending).__name__, status=job.status)
            if job.is_terminal:
                folders.remove(self._settings.work, claim.job_id)

    def _carry_out(self, claim: Claim, courier: Courier, relay: Relay) -> Ending:
        try:
            work, least_free = self._settings.work, self._settings.least_free_bytes
            with promised_room(work, claim.job_id, trades.disk_bytes(claim), least_free):
                workspace = trades.prepare(work, claim, self._datasets, self._artifacts)
                return self._watch(workspace, claim, courier, relay)
        except StorageFull as error:
            return Pause(Reason(code=error.code, message=error.message))
        except LeaseLost:
            raise
        except DatabaseUnavailable as error:
            return Release(error.message)
        except StorageUnavailable as error:
            return Lose(Reason(code=error.code, message=error.message))
        except FoundryError as error:
            return Fail(Reason(code=error.code, message=error.message))
        except Exception as error:
            _log.exception("the supervisor failed")
            return Lose(Reason(code="worker_failed", message=f"the worker failed: {type(error).__name__}: {error}"))

    def _watch(self, workspace: Workspace, claim: Claim, courier: Courier, relay: Relay) -> Ending:
        """Start the run and stay with it to its end; raise `LeaseLost` when it had to be killed for the lease."""
        environment = run_environment(os.environ, hub=trades.needs_hub(claim, self._settings, os.environ))
        kill_at: float | None = None
        killed_before, hung = memory.kills(), False
        with RunProcess(self._command, workspace.root, environment=environment, hear=relay.hear) as run:
            _log.info("run started", pid=run.pid)
            while (status := run.wait(_TICK_S)) is None:
                if courier.is_fenced:
                    raise courier.fenced()
                if kill_at is None and self._must_stop(courier):
                    run.ask_to_stop()
                    kill_at = time.monotonic() + self._settings.stop_grace_s
                elif kill_at is not None and time.monotonic() > kill_at:
                    _log.warning("the run did not stop in time and is killed")
                    run.kill()
                elif run.silent_s > self._settings.silence_s and not hung:
                    hung = True
                    run.ask_where()
                    run.wait(_STACK_S)
                    run.kill()
        relay.end()
        courier.deliver_all()
        _log.info("run ended", status=status, last_lines=run.last_lines()[-5:])
        if hung and kill_at is None:
            _log.warning("the run was hung and is killed; this is where", last_lines=run.last_lines())
            return Lose(Reason(code="hung", message=f"the run said nothing for {self._settings.silence_s:g} s"))
        return ending_of(
            status, asked=kill_at is not None, said=relay.last_error, last_lines=run.last_lines(),
            starved=memory.kills() > killed_before,
        )  # fmt: skip

    def _must_stop(self, courier: Courier) -> bool:
        return self._stopping.is_set() or courier.orders.cancel or courier.orders.pause

    def _settle(self, claim: Claim, courier: Courier, ending: Ending) -> Job | Evaluation:
        """Write the ending; while the database is away try again for as long as the lease is ours."""
        product: Product | None = None
        while not courier.is_fenced:
            try:
                if isinstance(ending, Publish) and product is None:
                    ending, product = self._checked(claim)
                return self._write(claim, ending, product)
            except IllegalTransition:
                # The user was quicker: what he asked for is what happens.
                ending = Release("stopped as asked")
            except OperatorError as error:
                _log.warning("the database does not take the ending; trying again", error=error.message)
                time.sleep(_RETRY_S)
        raise courier.fenced()

    def _checked(self, claim: Claim) -> tuple[Ending, Product | None]:
        workspace = Workspace(self._settings.work / claim.job_id / str(claim.epoch))
        try:
            return Publish(), trades.product_of(workspace, claim, self._artifacts, self._key)
        except StorageFull as error:
            return Pause(Reason(code=error.code, message=error.message)), None
        except (ArtifactDamaged, OSError) as error:
            return Fail(Reason(code="invalid_result", message=str(error))), None

    def _write(self, claim: Claim, ending: Ending, product: Product | None) -> Job | Evaluation:
        match ending:
            case Publish():
                return self._jobs.succeed(claim, *(product or Product()))
            case Fail(reason):
                return self._jobs.fail(claim, reason)
            case Pause(reason):
                return self._jobs.paused(claim, reason)
            case Release(message):
                return self._jobs.release(claim, message)
            case Starve(reason):
                return self._jobs.starve(claim, reason.message)
            case Lose(reason):
                return self._jobs.lose(claim, reason.message, code=reason.code)
