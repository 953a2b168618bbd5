"""/metrics for Prometheus. Behind a key like everything else, for it tells of all projects:

authorization: {credentials_file: /path/to/key}        # in Prometheus' scrape configuration
"""

import time

from apiflask import APIBlueprint
from flask import Flask, Response, current_app, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import func, select

from api.auth import needs
from api.openapi import text
from api.state import State, state
from foundry.spec.access import Scope
from foundry.spec.lifecycle import Status
from foundry.store.database import db_now
from foundry.store.project_tables import DeliveryRow
from foundry.store.tables import AttemptRow, JobRow

metrics = APIBlueprint("metrics", __name__)
_NAME = "foundry.metrics"
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meters:
    """What one process counts; several processes are several targets of a scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "operation", "status")
        self.requests = Counter("foundry_requests", "Answers sent", labels, registry=self.registry)
        self.seconds = Histogram(
            "foundry_request_seconds", "Seconds from a request to the start of its answer", ("operation",),
            buckets=_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.streams = Gauge("foundry_open_streams", "Streams and long polls that are open", registry=self.registry)
        self.jobs = Gauge("foundry_jobs", "Jobs that have not ended, by status", ("status",), registry=self.registry)
        self.oldest = Gauge(
            "foundry_oldest_queued_job_seconds", "How long the oldest queued job has waited", registry=self.registry
        )
        self.lost = Gauge(
            "foundry_lost_attempts_last_hour", "Attempts of the last hour that ended badly, or without a word",
            registry=self.registry,
        )  # fmt: skip
        self.free = Gauge(
            "foundry_disk_free_bytes",
            "Free for artifacts and work, on this machine",
            registry=self.registry,
        )
        self.deliveries = Gauge(
            "foundry_pending_webhook_deliveries", "Messages not yet delivered", registry=self.registry
        )

    def look(self, memory: State) -> None:
        """What is not counted but stands in the database."""
        active = [status for status in Status if not status.is_terminal]
        with memory.database.read() as session:
            by_status = select(JobRow.status, func.count()).where(JobRow.status.in_([s.value for s in active]))
            found = {status: count for status, count in session.execute(by_status.group_by(JobRow.status))}
            oldest = session.scalar(
                select(JobRow.created_at).where(JobRow.status == Status.QUEUED.value).order_by(JobRow.id).limit(1)
            )
            lost = session.scalar(
                select(func.count()).where(AttemptRow.outcome == "lost", AttemptRow.ended_at > db_now() - 3600)
            )
            pending = session.scalar(select(func.count()).where(DeliveryRow.status == "pending"))
        for status in active:
            self.jobs.labels(status.value).set(found.get(status.value, 0))
        self.oldest.set(max(0.0, time.time() - oldest) if oldest is not None else 0.0)
        self.lost.set(lost or 0)
        self.free.set(memory.forecasts.disk_free_bytes() or 0)
        self.deliveries.set(pending or 0)
        self.streams.set(memory.streams.open)


def install(app: Flask) -> None:
    """Count every answer."""
    app.extensions[_NAME] = meters = Meters()

    def count(response: Response) -> Response:
        operation = request.endpoint or "none"
        meters.requests.labels(request.method, operation, str(response.status_code)).inc()
        meters.seconds.labels(operation).observe(time.monotonic() - g.began_at)
        return response

    app.after_request(count)


@metrics.get("/metrics")
@needs(Scope.INSTALLATION)
@metrics.doc(responses=text("The metrics as Prometheus reads them"))
def show() -> Response:
    """Requests, latencies, open streams, unfinished jobs and waiting messages of the installation."""
    meters: Meters = current_app.extensions[_NAME]
    meters.look(state())
    return Response(generate_latest(meters.registry), content_type=CONTENT_TYPE_LATEST)
