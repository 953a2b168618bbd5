"""The loop that makes everything else safe to lose: silent workers' jobs are freed, queued jobs are rung for again.

Every worker runs it. No leader is needed: freeing and claiming are guarded updates, and a ring too many is harmless.
"""

import threading
from collections.abc import Callable, Sequence

import structlog

from foundry.errors import OperatorError
from foundry.store.jobs import Jobs
from foundry.store.settings import Settings
from workers import folders

_log = structlog.get_logger()


class Reconciler:
    """Looks three times in a lease, in a thread of its own."""

    def __init__(
        self, settings: Settings, jobs: Jobs, *, ring: Callable[[str], None] = lambda _: None,
        is_idle: Callable[[], bool] = lambda: True, sweeps: Sequence[Callable[[], None]] = (),
    ) -> None:  # fmt: skip
        """`ring` tells a worker of a queued job. It is called only while `is_idle`: a busy worker would only pile up
        messages, and an idle one proves that a job still queued has no message on its way. `sweeps` remove what is
        over: uploads that nobody finished, bytes that nothing holds."""
        self._settings = settings
        self._jobs = jobs
        self._ring = ring
        self._is_idle = is_idle
        self._sweeps = sweeps
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._go, name="reconciler", daemon=True)

    def start(self) -> None:
        """Look at once, and then again and again."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._closing.set()
        self._thread.join(self._settings.lease_s / 3)

    def once(self) -> None:
        """One look; raise `OperatorError` when the database is away."""
        for job_id in self._jobs.reconcile():
            if self._is_idle():
                self._ring(job_id)
        for job_id in folders.sweep(self._settings.work, self._jobs.terminal_among):
            _log.info("removed the folder of an ended job", job_id=job_id)
        for sweep in self._sweeps:
            sweep()

    def _go(self) -> None:
        while not self._closing.is_set():
            try:
                self.once()
            except OperatorError as error:
                _log.warning("the database does not answer; looking again later", error=error.message)
            except Exception:
                _log.exception("this look failed; looking again later")
            self._closing.wait(self._settings.lease_s / 3)
