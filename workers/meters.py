"""What a worker counts for Prometheus, shown at FOUNDRY_METRICS_PORT; the queue is shown by the API (api/metrics.py).

In Celery's pools of processes each child counts for itself and only the parent shows: use the pool of threads.
"""

import time
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from foundry.spec.lifecycle import EventType, RunEvent
from foundry.store.settings import Settings

_log = structlog.get_logger()
_STAGE_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600)


class Meters:
    """Of one process; safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._endings = Counter(
            "foundry_attempts", "Attempts that have ended, by how", ("ending", "code"), registry=self.registry
        )
        self._leases = Counter("foundry_lost_leases", "Attempts that lost their lease", registry=self.registry)
        self._stages = Histogram(
            "foundry_stage_seconds", "Seconds of stages that were completed", ("stage",), buckets=_STAGE_S,
            registry=self.registry,
        )  # fmt: skip
        self._running = Gauge("foundry_runs", "Runs that go on", registry=self.registry)
        self._memory = Gauge(
            "foundry_run_memory_bytes", "The most that the latest run held: on the accelerator, else in its process",
            registry=self.registry,
        )  # fmt: skip
        self._tokens = Gauge(
            "foundry_run_tokens_per_second", "Training speed that the latest run reported", registry=self.registry
        )

    def show(self, settings: Settings) -> None:
        """Serve them when a port is set; one that is taken is logged, for a worker must work without being watched."""
        if settings.metrics_port is None:
            return
        try:
            start_http_server(settings.metrics_port, settings.host, self.registry)
        except OSError as error:
            _log.warning("no metrics are shown", port=settings.metrics_port, error=str(error))

    def began(self) -> "Attempt":
        """An attempt begins."""
        self._running.inc()
        return Attempt(self)

    def ended(self, ending: str, code: str) -> None:
        self._running.dec()
        self._endings.labels(ending, code).inc()
        if ending == "LeaseLost":
            self._leases.inc()

    def stage(self, stage: str, seconds: float) -> None:
        self._stages.labels(stage).observe(seconds)

    def speed(self, data: dict[str, Any]) -> None:
        if isinstance(memory := data.get("memory_bytes"), int | float):
            self._memory.set(memory)
        if isinstance(tokens := data.get("tokens_per_s"), int | float):
            self._tokens.set(tokens)


class Attempt:
    """Listens to one run."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._began: dict[str, float] = {}

    def hear(self, event: RunEvent) -> None:
        """One event of the run."""
        stage = str(event.data.get("stage"))
        if event.type is EventType.STAGE_STARTED:
            self._began[stage] = time.monotonic()
        elif event.type is EventType.STAGE_COMPLETED and stage in self._began:
            self._meters.stage(stage, time.monotonic() - self._began.pop(stage))
        elif event.type is EventType.PROGRESS:
            self._meters.speed(event.data)

    def end(self, ending: str, code: str = "") -> None:
        """How it ended."""
        self._meters.ended(ending, code)


METERS = Meters()
"""Those of this process."""
