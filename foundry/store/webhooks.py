"""Webhook endpoints of projects, and how their messages fared. What is sent: outbox.py."""

import secrets
from base64 import b64encode
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from foundry.errors import NotFound
from foundry.spec.resources import Page
from foundry.spec.webhooks import IssuedEndpoint, WebhookDelivery, WebhookEndpoint
from foundry.store.database import Database, db_now
from foundry.store.idempotency import take_key
from foundry.store.ids import new_id
from foundry.store.outbox import new_delivery
from foundry.store.pages import moment, page_of
from foundry.store.project_tables import DeliveryRow, WebhookRow
from foundry.store.records import Idempotency


class Webhooks:
    """Every method takes the project of the caller; another project's endpoint is `NotFound`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, project_id: str, url: str, events: Sequence[str], idempotency: Idempotency | None = None
    ) -> IssuedEndpoint:
        """An endpoint with its secret, which is None for a repeated request."""
        endpoint_id, secret = new_id("whk"), _new_secret()
        with self._database.write() as session:
            made = take_key(session, project_id, idempotency, endpoint_id)
            if made is None:
                now = session.scalars(select(db_now())).one()
                row = WebhookRow(
                    id=endpoint_id, project_id=project_id, url=url, events=list(events), secret=secret, enabled=True,
                    created_at=now,
                )  # fmt: skip
                session.add(row)
        record = self.get(project_id, made or endpoint_id)
        return IssuedEndpoint(**record.model_dump(), secret=None if made else secret)

    def get(self, project_id: str, endpoint_id: str) -> WebhookEndpoint:
        """One endpoint, without its secret; raise `NotFound`."""
        with self._database.read() as session:
            return _record(_find(session, project_id, endpoint_id))

    def list(self, project_id: str, limit: int = 20, after: str | None = None) -> Page[WebhookEndpoint]:
        """Newest first."""
        query = select(WebhookRow).where(WebhookRow.project_id == project_id)
        with self._database.read() as session:
            return page_of(session, query, WebhookRow.id, limit, after, _records)

    def change(
        self, project_id: str, endpoint_id: str, *, url: str | None, events: Sequence[str] | None, enabled: bool | None
    ) -> WebhookEndpoint:
        """Set what is not None; enabling forgets why the service had stopped."""
        with self._database.write() as session:
            row = _find(session, project_id, endpoint_id)
            row.url = row.url if url is None else url
            row.events = row.events if events is None else list(events)
            if enabled is not None:
                row.enabled, row.disabled_reason = enabled, None
            return _record(row)

    def rotate(self, project_id: str, endpoint_id: str) -> IssuedEndpoint:
        """A new secret; the next message is signed with it."""
        with self._database.write() as session:
            row = _find(session, project_id, endpoint_id)
            row.secret = _new_secret()
            return IssuedEndpoint(**_record(row).model_dump(), secret=row.secret)

    def delete(self, project_id: str, endpoint_id: str) -> None:
        """Forget the endpoint and its messages."""
        with self._database.write() as session:
            row = _find(session, project_id, endpoint_id)
            session.execute(delete(DeliveryRow).where(DeliveryRow.endpoint_id == endpoint_id))
            session.delete(row)

    def test(self, project_id: str, endpoint_id: str, idempotency: Idempotency | None = None) -> WebhookDelivery:
        """Send the endpoint a message of the type `webhook.test`."""
        with self._database.write() as session:
            endpoint = _find(session, project_id, endpoint_id)
            now = session.scalars(select(db_now())).one()
            payload = {"type": "webhook.test", "timestamp": moment(now).isoformat(), "data": {}}
            return self._send(session, project_id, endpoint, "webhook.test", payload, now, idempotency)

    def redeliver(
        self, project_id: str, endpoint_id: str, delivery_id: str, idempotency: Idempotency | None = None
    ) -> WebhookDelivery:
        """Send a message once more, under an id of its own; raise `NotFound`."""
        with self._database.write() as session:
            endpoint = _find(session, project_id, endpoint_id)
            old = session.get(DeliveryRow, delivery_id)
            if old is None or old.endpoint_id != endpoint_id:
                raise NotFound(f"no delivery {delivery_id!r} of this endpoint")
            now = session.scalars(select(db_now())).one()
            return self._send(session, project_id, endpoint, old.type, old.payload, now, idempotency)

    def deliveries(
        self, project_id: str, endpoint_id: str, limit: int = 20, after: str | None = None
    ) -> Page[WebhookDelivery]:
        """Newest first; raise `NotFound` for the endpoint."""
        query = select(DeliveryRow).where(DeliveryRow.endpoint_id == endpoint_id)
        with self._database.read() as session:
            _find(session, project_id, endpoint_id)
            return page_of(session, query, DeliveryRow.id, limit, after, _sent)

    def _send(
        self, session: Session, project_id: str, endpoint: WebhookRow, type: str, payload: object, now: float,
        idempotency: Idempotency | None,
    ) -> WebhookDelivery:  # fmt: skip
        row = new_delivery(endpoint.id, type, payload, now)
        if made := take_key(session, project_id, idempotency, row.id):
            return _delivery(session.get_one(DeliveryRow, made))
        session.add(row)
        return _delivery(row)


def _new_secret() -> str:
    """As the Standard Webhooks write it: 32 random bytes."""
    return f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"


def _find(session: Session, project_id: str, endpoint_id: str) -> WebhookRow:
    row = session.get(WebhookRow, endpoint_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no webhook endpoint {endpoint_id!r} in this project")
    return row


def _records(_: Session, rows: Sequence[WebhookRow]) -> Sequence[WebhookEndpoint]:
    return [_record(row) for row in rows]


def _sent(_: Session, rows: Sequence[DeliveryRow]) -> Sequence[WebhookDelivery]:
    return [_delivery(row) for row in rows]


def _record(row: WebhookRow) -> WebhookEndpoint:
    return WebhookEndpoint(
        id=row.id, url=row.url, events=tuple(row.events), enabled=row.enabled, disabled_reason=row.disabled_reason,
        created_at=moment(row.created_at),
    )  # fmt: skip


def _delivery(row: DeliveryRow) -> WebhookDelivery:
    return WebhookDelivery(
        id=row.id, endpoint_id=row.endpoint_id, type=row.type, status=row.status, tries=row.tries,
        next_try_at=None if row.next_try_at is None else moment(row.next_try_at),
        response_status=row.response_status, error=row.error, created_at=moment(row.created_at),
        delivered_at=None if row.delivered_at is None else moment(row.delivered_at),
    )  # fmt: skip
