"""/v1/webhook_endpoints: addresses that hear of what happens to jobs, signed as the Standard Webhooks say."""

from typing import Annotated

from apiflask import APIBlueprint
from pydantic import Field

from api.auth import needs, project_id
from api.idempotency import CreateHeaders, idempotency
from api.pages import PageQuery
from api.records import Body
from api.state import state
from foundry.intake.addresses import require_public
from foundry.spec.access import Scope
from foundry.spec.resources import Page
from foundry.spec.webhooks import HookedEvents, IssuedEndpoint, WebhookDelivery, WebhookEndpoint
from foundry.store.records import Idempotency

webhooks = APIBlueprint("webhooks", __name__)
Url = Annotated[str, Field(min_length=1, max_length=2000)]


class EndpointBody(Body):
    """An address and what it wants to hear of."""

    url: Url
    """https, of a public host; messages are never sent to private networks, and redirects are not followed."""
    events: HookedEvents = ("job.succeeded", "job.failed", "job.cancelled")
    """What the endpoint is to hear of."""


class EndpointChange(Body):
    """What is to be different; what is left out stays."""

    url: Url | None = None
    """As of a new endpoint; null leaves it as it is."""
    events: HookedEvents | None = None
    """In place of those before; null leaves them as they are."""
    enabled: bool | None = None
    """False stops the messages, true starts them again; null leaves it as it is."""


@webhooks.post("/webhook_endpoints")
@needs(Scope.WEBHOOKS_WRITE)
@webhooks.input(EndpointBody)
@webhooks.input(CreateHeaders, location="headers")
@webhooks.output(IssuedEndpoint, 201)
@webhooks.doc(responses=[400, 415])
def create(json_data: EndpointBody, headers_data: CreateHeaders) -> IssuedEndpoint:
    """Register an address; the answer carries its signing secret, this once."""
    return register(json_data, idempotency(headers_data, json_data.model_dump_json()))


def register(body: EndpointBody, once: Idempotency | None) -> IssuedEndpoint:
    """Judge an address and keep it; raise `UnsafeAddress`."""
    require_public(body.url, private=state().settings.webhooks_private)
    return state().webhooks.create(project_id(), body.url, body.events, once)


@webhooks.get("/webhook_endpoints")
@needs(Scope.WEBHOOKS_READ)
@webhooks.input(PageQuery, location="query")
@webhooks.output(Page[WebhookEndpoint])
def list_endpoints(query_data: PageQuery) -> Page[WebhookEndpoint]:
    """The project's endpoints, newest first."""
    return state().webhooks.list(project_id(), query_data.limit, query_data.after)


@webhooks.get("/webhook_endpoints/<endpoint_id>")
@needs(Scope.WEBHOOKS_READ)
@webhooks.output(WebhookEndpoint)
def get_endpoint(endpoint_id: str) -> WebhookEndpoint:
    """One endpoint without its secret."""
    return state().webhooks.get(project_id(), endpoint_id)


@webhooks.patch("/webhook_endpoints/<endpoint_id>")
@needs(Scope.WEBHOOKS_WRITE)
@webhooks.input(EndpointChange)
@webhooks.output(WebhookEndpoint)
@webhooks.doc(responses=[400, 415])
def change(endpoint_id: str, json_data: EndpointChange) -> WebhookEndpoint:
    """Change address or events, or stop and start the messages."""
    if json_data.url is not None:
        require_public(json_data.url, private=state().settings.webhooks_private)
    return state().webhooks.change(
        project_id(), endpoint_id, url=json_data.url, events=json_data.events, enabled=json_data.enabled
    )


@webhooks.delete("/webhook_endpoints/<endpoint_id>")
@needs(Scope.WEBHOOKS_WRITE)
@webhooks.output({}, 204)
def delete(endpoint_id: str) -> str:
    """Forget an endpoint and its messages."""
    state().webhooks.delete(project_id(), endpoint_id)
    return ""


@webhooks.post("/webhook_endpoints/<endpoint_id>/rotate")
@needs(Scope.WEBHOOKS_WRITE)
@webhooks.output(IssuedEndpoint)
def rotate(endpoint_id: str) -> IssuedEndpoint:
    """Make a new secret; the next message is signed with it."""
    return state().webhooks.rotate(project_id(), endpoint_id)


@webhooks.post("/webhook_endpoints/<endpoint_id>/test")
@needs(Scope.WEBHOOKS_WRITE)
@webhooks.input(CreateHeaders, location="headers")
@webhooks.output(WebhookDelivery, 201)
def test(endpoint_id: str, headers_data: CreateHeaders) -> WebhookDelivery:
    """Send a message of the type `webhook.test`."""
    return state().webhooks.test(project_id(), endpoint_id, idempotency(headers_data))


@webhooks.get("/webhook_endpoints/<endpoint_id>/deliveries")
@needs(Scope.WEBHOOKS_READ)
@webhooks.input(PageQuery, location="query")
@webhooks.output(Page[WebhookDelivery])
def list_deliveries(endpoint_id: str, query_data: PageQuery) -> Page[WebhookDelivery]:
    """Every message to the endpoint and how it fared, newest first."""
    return state().webhooks.deliveries(project_id(), endpoint_id, query_data.limit, query_data.after)


@webhooks.post("/webhook_endpoints/<endpoint_id>/deliveries/<delivery_id>/redeliver")
@needs(Scope.WEBHOOKS_WRITE)
@webhooks.input(CreateHeaders, location="headers")
@webhooks.output(WebhookDelivery, 201)
def redeliver(endpoint_id: str, delivery_id: str, headers_data: CreateHeaders) -> WebhookDelivery:
    """Send a message once more, under an id of its own."""
    return state().webhooks.redeliver(project_id(), endpoint_id, delivery_id, idempotency(headers_data))
