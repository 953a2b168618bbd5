"""Messages for webhooks: written in the transaction of what they tell, taken by whoever sends, kept until settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from foundry.spec.lifecycle import RunEvent, WorkKind
from foundry.spec.webhooks import HOOKED, hooked_name
from foundry.store.database import Database, db_now
from foundry.store.ids import new_id
from foundry.store.pages import moment
from foundry.store.project_tables import DeliveryRow, WebhookRow
from foundry.store.tables import JobRow

RETRY_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Seconds from one try to the next; after the last the message has failed. The schedule of the Standard Webhooks."""
_LEASE_S = 60.0
_BATCH = 20
_HOOKS = WebhookRow.__table__.c
_LISTENING = select(_HOOKS.id, _HOOKS.events).where(
    _HOOKS.project_id == bindparam("project_id"), _HOOKS.enabled.is_(True)
)


@dataclass(frozen=True, kw_only=True)
class Message:
    """One try of one delivery."""

    id: str
    endpoint_id: str
    url: str
    secret: str
    payload: Any
    tries: int
    """This one included."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a try came to."""

    delivered: bool
    response_status: int | None = None
    error: str | None = None
    gone: bool = False
    """The receiver wants no more (410)."""


def enqueue(session: Session, job: JobRow, events: Sequence[RunEvent], now: float) -> None:
    """A message for every endpoint of the job's project that hears of these events. `job.last_seq` is of the last."""
    kind = WorkKind(job.kind)
    named = [(seq, hooked_name(kind, e.type), e) for seq, e in enumerate(events, job.last_seq - len(events) + 1)]
    hooked = [(seq, name, e) for seq, name, e in named if name in HOOKED]
    if not hooked:
        return
    endpoints = session.connection().execute(_LISTENING, {"project_id": job.project_id}).all()
    if not endpoints:
        return
    for seq, name, event in hooked:
        whose = {f"{kind}_id": job.id, f"{kind}_name": job.name}
        data = {**event.data, **whose, "status": job.status, "seq": seq}
        payload = {"type": name, "timestamp": moment(now).isoformat(), "data": data}
        session.add_all(
            new_delivery(endpoint.id, name, payload, now) for endpoint in endpoints if name in endpoint.events
        )


def new_delivery(endpoint_id: str, type: str, payload: Any, now: float) -> DeliveryRow:
    """A message that is due now."""
    return DeliveryRow(
        id=new_id("whd"), endpoint_id=endpoint_id, type=type, payload=payload, status="pending", tries=0,
        next_try_at=now, created_at=now,
    )  # fmt: skip


class Outbox:
    """For the one who sends. Several may: a message is taken for a minute, by a guarded update."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self) -> Sequence[Message]:
        """Messages that are due, oldest first."""
        due = (DeliveryRow.status == "pending", DeliveryRow.next_try_at <= db_now())
        with self._database.read() as session:
            ids = session.scalars(select(DeliveryRow.id).where(*due).order_by(DeliveryRow.id).limit(_BATCH)).all()
        if not ids:
            return []
        claim = update(DeliveryRow).where(DeliveryRow.id.in_(ids), *due)
        claim = claim.values(next_try_at=db_now() + _LEASE_S, tries=DeliveryRow.tries + 1)
        with self._database.write() as session:
            taken = session.scalars(
                claim.returning(DeliveryRow.id), execution_options={"synchronize_session": False}
            ).all()
            query = select(DeliveryRow, WebhookRow).join(WebhookRow, WebhookRow.id == DeliveryRow.endpoint_id)
            rows = session.execute(query.where(DeliveryRow.id.in_(taken)).order_by(DeliveryRow.id)).all()
        return [
            Message(
                id=delivery.id, endpoint_id=endpoint.id, url=endpoint.url, secret=endpoint.secret,
                payload=delivery.payload, tries=delivery.tries,
            )
            for delivery, endpoint in rows
        ]  # fmt: skip

    def settle(self, message: Message, outcome: Outcome) -> None:
        """Delivered, to be tried again, or failed for good; an endpoint that is gone hears no more."""
        with self._database.write() as session:
            row = session.get_one(DeliveryRow, message.id)
            now = session.scalars(select(db_now())).one()
            row.response_status, row.error = outcome.response_status, outcome.error
            if outcome.delivered:
                row.status, row.delivered_at, row.next_try_at = "delivered", now, None
            elif outcome.gone or message.tries > len(RETRY_S):
                row.status, row.next_try_at = "failed", None
            else:
                row.next_try_at = now + RETRY_S[message.tries - 1]
            if outcome.gone:
                endpoint = session.get_one(WebhookRow, message.endpoint_id)
                endpoint.enabled, endpoint.disabled_reason = False, "it answered 410: it wants no more messages"
