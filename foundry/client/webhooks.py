"""`foundry.webhooks`: addresses that hear of what happens to jobs; and how a receiver checks what it gets."""

import hmac
import json
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from foundry.client import resource
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, listing, verb
from foundry.client.pages import every
from foundry.errors import Unauthorized
from foundry.spec.webhooks import IssuedEndpoint, WebhookDelivery, WebhookEndpoint

_PATH = "/v1/webhook_endpoints"
_TOLERANCE_S = 300.0


class Webhooks(Resource[T]):
    """Webhook endpoints of the key's project."""

    @verb
    def create(
        self, url: str, events: Sequence[str] | None = None, *, idempotency_key: str | None = None
    ) -> Flow[IssuedEndpoint]:
        """Register an https address; `secret` of the answer is shown this once. By default it hears of endings."""
        body = {"url": url} | ({"events": tuple(events)} if events is not None else {})
        return (yield from resource.create(self._transport, IssuedEndpoint, _PATH, body, idempotency_key))

    @verb
    def get(self, endpoint_id: str) -> Flow[WebhookEndpoint]:
        """One endpoint; raises `NotFound`."""
        return (yield from resource.get(self._transport, WebhookEndpoint, _PATH, endpoint_id))

    @listing
    def list(self, *, limit: int | None = None) -> Items[WebhookEndpoint]:
        """Every endpoint, newest first."""
        return every(self._transport, _PATH, WebhookEndpoint, limit=limit)

    @verb
    def change(
        self, endpoint_id: str, *, url: str | None = None, events: Sequence[str] | None = None,
        enabled: bool | None = None,
    ) -> Flow[WebhookEndpoint]:  # fmt: skip
        """Set what is given."""
        given = {"url": url, "events": None if events is None else tuple(events), "enabled": enabled}
        body = {name: value for name, value in given.items() if value is not None}
        return (yield from resource.change(self._transport, WebhookEndpoint, "PATCH", below(_PATH, endpoint_id), body))

    @verb
    def delete(self, endpoint_id: str) -> Flow[None]:
        """Forget an endpoint and its messages."""
        yield from resource.delete(self._transport, below(_PATH, endpoint_id))

    @verb
    def rotate(self, endpoint_id: str) -> Flow[IssuedEndpoint]:
        """Make a new secret; the next message is signed with it."""
        path = below(_PATH, endpoint_id, "rotate")
        return (yield from resource.change(self._transport, IssuedEndpoint, "POST", path))

    @verb
    def test(self, endpoint_id: str) -> Flow[WebhookDelivery]:
        """Send a message of the type `webhook.test`."""
        return (yield from resource.create(self._transport, WebhookDelivery, below(_PATH, endpoint_id, "test")))

    @listing
    def deliveries(self, endpoint_id: str, *, limit: int | None = None) -> Items[WebhookDelivery]:
        """Every message and how it fared, newest first."""
        return every(self._transport, below(_PATH, endpoint_id, "deliveries"), WebhookDelivery, limit=limit)

    @verb
    def redeliver(self, endpoint_id: str, delivery_id: str) -> Flow[WebhookDelivery]:
        """Send a message once more, under an id of its own."""
        path = below(_PATH, endpoint_id, "deliveries", delivery_id, "redeliver")
        return (yield from resource.create(self._transport, WebhookDelivery, path))


def verify(body: bytes, headers: Mapping[str, str], secret: str, *, now: float | None = None) -> dict[str, Any]:
    """The message, for a receiver: checked to come from who knows the secret, within five minutes.

    `headers` by lower-case names. Raises `Unauthorized`. Compare `webhook-id` with those already handled: a message can
    come twice. The scheme is that of standardwebhooks.com.
    """
    try:
        message_id, sent_at = headers["webhook-id"], headers["webhook-timestamp"]
        given = headers["webhook-signature"].split()
        is_old = abs((time.time() if now is None else now) - float(sent_at)) > _TOLERANCE_S
    except (KeyError, ValueError) as error:
        raise Unauthorized("this is no signed message: webhook-id, -timestamp or -signature is missing") from error
    digest = hmac.digest(b64decode(secret.removeprefix("whsec_")), f"{message_id}.{sent_at}.".encode() + body, "sha256")
    expected = f"v1,{b64encode(digest).decode()}"
    if is_old or not any(hmac.compare_digest(expected.encode(), one.encode()) for one in given):
        raise Unauthorized("the signature of the message is wrong, or it is older than five minutes")
    message: dict[str, Any] = json.loads(body)
    return message
