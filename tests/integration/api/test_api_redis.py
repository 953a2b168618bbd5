"""The doorbell on real Redis: the message that a Celery worker takes carries the job's id and nothing else."""

import base64
import json
import time

import pytest
import redis

from api.queue import ring
from tests.servers import Redis

pytestmark = pytest.mark.integration


def _waiting(server: Redis) -> list[bytes]:
    """Every message that waits, oldest first."""
    with redis.Redis.from_url(server.url) as client:
        found: list[bytes] = client.lrange("celery", 0, -1)
    return found[::-1]


def test_ring_sends_the_jobs_id_as_json(redis_server: Redis) -> None:
    ring(redis_server.url, "job_abc")
    (raw,) = _waiting(redis_server)
    message = json.loads(raw)
    assert message["headers"]["task"] == "workers.tasks.customize"
    assert message["content-type"] == "application/json"
    assert json.loads(base64.b64decode(message["body"]))[:2] == [["job_abc"], {}]


def test_ring_reaches_the_broker_again_when_it_was_restarted(redis_server: Redis) -> None:
    ring(redis_server.url, "job_1")
    redis_server.stop()
    began_at = time.monotonic()
    ring(redis_server.url, "job_2")
    assert time.monotonic() - began_at < 5
    redis_server.start()
    ring(redis_server.url, "job_3")
    (raw,) = _waiting(redis_server)
    assert json.loads(raw)["headers"]["argsrepr"] == "['job_3']"
