"""Webhooks: where the service tells of what happened to jobs, and how each message fared."""

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field

from foundry.spec.lifecycle import EventType, WorkKind
from foundry.spec.record import CreatedAt, Id
from foundry.spec.resources import Resource

HookedEvent = Literal[
    "job.submitted", "job.started", "attempt.lost", "job.paused", "job.resumed", "job.cancelled", "job.succeeded",
    "job.failed", "variant.published", "evaluation.succeeded", "evaluation.failed", "evaluation.cancelled",
]  # fmt: skip
"""What an endpoint can hear of: transitions and what came out; never progress, which comes by the hundred."""
HOOKED: frozenset[str] = frozenset(get_args(HookedEvent))
HookedEvents = Annotated[tuple[HookedEvent, ...], Field(min_length=1, max_length=len(HOOKED))]


def hooked_name(kind: WorkKind, type: EventType) -> str:
    """What an event of a job or an evaluation is called outside: the endings of an evaluation are its own."""
    return type.value if kind is WorkKind.JOB else type.value.replace("job.", f"{kind}.", 1)


class WebhookEndpoint(Resource):
    """An address of the project's own that hears of its jobs and evaluations."""

    id: Id
    url: str
    """Where messages are sent, by POST."""
    events: tuple[str, ...]
    """What it hears of."""
    enabled: bool
    """Whether messages are sent."""
    disabled_reason: str | None = None
    """Why the service stopped sending, when it was not the user."""
    created_at: CreatedAt


class IssuedEndpoint(WebhookEndpoint):
    """An endpoint with its signing secret, shown this once; None when the same request made it before."""

    secret: str | None = None
    """whsec_ and the key of the HMAC in base64, as the Standard Webhooks write it."""


class WebhookDelivery(Resource):
    """One message to one endpoint. Its id is the `webhook-id` of every try."""

    id: Id
    endpoint_id: str
    """Where it goes."""
    type: str
    """What it tells of, as in `events` of an endpoint, or webhook.test."""
    status: Literal["pending", "delivered", "failed"]
    """pending is tried again; failed is not."""
    tries: int
    """So far."""
    next_try_at: datetime | None = None
    """Null once it is delivered or has failed."""
    response_status: int | None = None
    """Of the latest answer; null where there was none."""
    error: str | None = None
    """Why the latest try did not deliver it; null where it did, and before the first."""
    created_at: CreatedAt
    delivered_at: datetime | None = None
    """When an answer of 2xx came; null until then."""
