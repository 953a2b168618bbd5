"""Webhooks from the job's transition to the receiver, over real sockets, on both databases."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from foundry.client.webhooks import verify
from foundry.errors import Unauthorized
from foundry.spec.resources import Reason
from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.outbox import RETRY_S, Outbox
from foundry.store.webhooks import Webhooks
from tests import factories
from tests.unit.client.tiny_service import Answer, TinyService
from workers.postman import Postman


class Post:
    """One project, a receiver, and a postman who may go to this machine."""

    def __init__(self, database: Database, home: Path, receiver: TinyService) -> None:
        self.settings = factories.settings(home, webhooks_private=True)
        self.database, self.receiver = database, receiver
        self.project = factories.project(database)
        self.jobs = Jobs(database, self.settings)
        self.webhooks = Webhooks(database)
        self.postman = Postman(self.settings, Outbox(database))
        self.endpoint = self.webhooks.create(self.project, f"{receiver.url}/hook", ["job.succeeded", "job.failed"])

    def deliveries(self) -> list[tuple[str, str, int]]:
        found = self.webhooks.deliveries(self.project, self.endpoint.id).data
        return [(delivery.type, delivery.status, delivery.tries) for delivery in found]

    def come_due(self) -> None:
        with self.database.write() as session:
            session.connection().exec_driver_sql(
                "UPDATE webhook_deliveries SET next_try_at = 0 WHERE status = 'pending'"
            )


@pytest.fixture
def post(database: Database, tmp_path: Path) -> Iterator[Post]:
    with TinyService() as receiver:
        made = Post(database, tmp_path / "home", receiver)
        yield made
        made.postman.stop()  # lets go of its connections, for which the receiver waits


def test_a_transition_reaches_the_receiver_signed_as_the_standard_says(post: Post) -> None:
    post.receiver.on("/hook", Answer(status=204))
    claim = factories.running(post.jobs, post.project)
    post.jobs.succeed(claim, [factories.new_variant()])
    assert post.deliveries() == [("job.succeeded", "pending", 0)]
    assert post.postman.once() == 1 and post.postman.once() == 0
    (seen,) = post.receiver.seen
    assert post.endpoint.secret is not None
    message = verify(seen.body, seen.headers, post.endpoint.secret)
    assert Webhook(post.endpoint.secret).verify(seen.body, dict(seen.headers)) == message  # the standard's own library
    assert (message["type"], message["data"]["job_id"]) == ("job.succeeded", claim.job_id)
    assert message["data"]["status"] == "succeeded" and len(message["data"]["variant_ids"]) == 1
    (event,) = [e for e in post.jobs.events(post.project, claim.job_id) if e.type == "job.succeeded"]
    assert message["data"]["seq"] == event.seq
    assert post.deliveries() == [("job.succeeded", "delivered", 1)]
    for wrong in (seen.body + b" ", b"{}"):
        with pytest.raises(Unauthorized):
            verify(wrong, seen.headers, post.endpoint.secret)
    with pytest.raises(Unauthorized):
        verify(seen.body, seen.headers, post.endpoint.secret, now=float(seen.headers["webhook-timestamp"]) + 301)


def test_a_message_is_tried_again_with_its_id_and_fails_after_the_last_try(post: Post) -> None:
    post.receiver.on("/hook", Answer(status=500), Answer(body=b"x" * 10, cut=0), Answer(status=302), Answer(status=500))
    post.jobs.fail(factories.running(post.jobs, post.project), Reason(code="x", message="y"))
    for tries in range(1, len(RETRY_S) + 2):
        assert post.postman.once() == 1
        assert post.postman.once() == 0  # not due again yet
        assert post.deliveries()[0][2] == tries
        post.come_due()
    assert post.deliveries() == [("job.failed", "failed", len(RETRY_S) + 1)]
    assert len({seen.headers["webhook-id"] for seen in post.receiver.seen}) == 1
    assert {seen.path for seen in post.receiver.seen} == {"/hook"}  # no redirect was followed
    post.receiver.on("/hook", Answer(status=200))
    old = post.webhooks.deliveries(post.project, post.endpoint.id).data[0]
    post.webhooks.redeliver(post.project, post.endpoint.id, old.id)
    post.postman.once()
    assert post.deliveries()[0] == ("job.failed", "delivered", 1)


def test_an_endpoint_that_is_gone_or_switched_off_hears_no_more(post: Post) -> None:
    post.receiver.on("/hook", Answer(status=410))
    post.webhooks.test(post.project, post.endpoint.id)
    post.postman.once()
    endpoint = post.webhooks.get(post.project, post.endpoint.id)
    assert (endpoint.enabled, "410" in (endpoint.disabled_reason or "")) == (False, True)
    post.jobs.fail(factories.running(post.jobs, post.project), Reason(code="x", message="y"))
    assert post.deliveries() == [("webhook.test", "failed", 1)]


def test_nothing_is_sent_of_a_transition_that_did_not_happen(post: Post) -> None:
    claim = factories.running(post.jobs, post.project)
    with pytest.raises(Exception, match=r"(?i)unique"):
        post.jobs.succeed(claim, [factories.new_variant("kiosk"), factories.new_variant("kiosk")])
    assert post.deliveries() == []


def test_a_name_that_turns_private_after_it_was_registered_is_not_connected_to(
    database: Database, tmp_path: Path, project_id: str
) -> None:
    """DNS rebinding: the name was public when it was registered; at the connection it stands for this machine."""
    with TinyService() as receiver:
        webhooks = Webhooks(database)
        endpoint = webhooks.create(project_id, "https://rebinding.example/hook", ["job.failed"])
        webhooks.test(project_id, endpoint.id)
        postman = Postman(
            factories.settings(tmp_path / "home"), Outbox(database), lookup=lambda host, port: ["127.0.0.1"]
        )
        assert postman.once() == 1
        assert receiver.seen == []
    (delivery,) = webhooks.deliveries(project_id, endpoint.id).data
    assert delivery.status == "pending" and "127.0.0.1, which is not public" in (delivery.error or "")


def test_two_postmen_send_a_message_once(post: Post) -> None:
    post.receiver.on("/hook", Answer(status=200, silence_s=0.1))
    post.webhooks.test(post.project, post.endpoint.id)
    second = Postman(post.settings, Outbox(post.database))
    assert sorted((post.postman.once(), second.once())) == [0, 1]
    second.stop()
    assert json.loads(post.receiver.seen[0].body)["type"] == "webhook.test"


@pytest.fixture
def project_id(database: Database) -> str:
    return factories.project(database)
