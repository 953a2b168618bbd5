"""A job's history as a list, as a long poll and as a stream."""

import json
import threading
import time
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api import events as endpoint
from api.state import State
from foundry.spec.resources import Job
from tests.serving import Serving


def _url(job: Job) -> str:
    return f"/v1/customization/jobs/{job.id}/events"


def _messages(raw: str) -> list[dict[str, Any]]:
    """The messages of a stream: id and data."""
    found = []
    for block in raw.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append({"id": int(fields["id"]), "data": json.loads(fields["data"])})
    return found


def _memory(app: Flask) -> State:
    memory: State = app.extensions["foundry"]
    return memory


SSE = {"Accept": "text/event-stream"}


def test_events_follow_the_one_named_by_after(serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    serving.say(job, "one", "two", "three")
    whole = client.get(_url(job)).get_json()
    assert [event["seq"] for event in whole["data"]] == list(range(1, len(whole["data"]) + 1))
    part = client.get(f"{_url(job)}?after=2&limit=2").get_json()
    assert part["data"] == whole["data"][2:4]
    assert (part["has_more"], part["next"]) == (True, "4")
    last = client.get(f"{_url(job)}?after={len(whole['data'])}").get_json()
    assert last == {"data": [], "has_more": False, "next": str(len(whole["data"]))}


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", f"after={2**31}", "wait=31", "wait=nan", "wait=-1", "limit=0"]
)
def test_events_are_refused_when_the_query_is_out_of_range(
    serving: Serving, client: FlaskClient, refused: Any, query: str
) -> None:
    problem = refused(client.get(f"{_url(serving.submit())}?{query}"), 422)
    assert problem["errors"][0]["pointer"] == f"/query/{query.split('=')[0]}"


def test_a_long_poll_answers_as_soon_as_something_happens(serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    cancel = threading.Timer(0.3, serving.memory.jobs.cancel, (serving.project, job.id))
    cancel.start()
    began_at = time.monotonic()
    (event,) = client.get(f"{_url(job)}?after=1&wait=20").get_json()["data"]
    assert event["type"] == "job.cancelled"
    assert time.monotonic() - began_at < 10
    cancel.join()


def test_a_long_poll_answers_with_nothing_when_nothing_happens(serving: Serving, client: FlaskClient) -> None:
    began_at = time.monotonic()
    assert client.get(f"{_url(serving.submit())}?after=1&wait=0.6").get_json()["data"] == []
    assert time.monotonic() - began_at >= 0.6


def test_a_long_poll_answers_at_once_when_the_job_is_over(serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    serving.memory.jobs.cancel(serving.project, job.id)
    began_at = time.monotonic()
    assert client.get(f"{_url(job)}?after=2&wait=30").get_json()["data"] == []
    assert time.monotonic() - began_at < 5


def test_a_stream_gives_every_event_and_ends_when_the_job_does(serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    serving.say(job, "a line\nand another")
    finish = threading.Timer(0.3, serving.publish, (job, {"weights.gguf": b"x"}))
    finish.start()
    with client.get(_url(job), headers=SSE) as response:
        assert response.content_type == "text/event-stream; charset=utf-8"
        messages = _messages(response.get_data(as_text=True))
    finish.join()
    events = serving.memory.jobs.events(serving.project, job.id)
    assert [message["id"] for message in messages] == [event.seq for event in events]
    assert messages[-1]["data"]["type"] == "job.succeeded"
    assert "a line\nand another" in [message["data"]["message"] for message in messages]


def test_a_stream_goes_on_after_the_last_event_id_when_a_reader_comes_back(
    serving: Serving, client: FlaskClient
) -> None:
    job = serving.submit()
    serving.say(job, "one", "two")
    serving.memory.jobs.cancel(serving.project, job.id)
    last = serving.memory.jobs.events(serving.project, job.id)[-1].seq
    with client.get(f"{_url(job)}?after=1", headers={**SSE, "Last-Event-ID": "3"}) as response:
        assert [message["id"] for message in _messages(response.get_data(as_text=True))] == list(range(4, last + 1))
    over = client.get(_url(job), headers={**SSE, "Last-Event-ID": str(last)})
    assert (over.status_code, over.get_data()) == (204, b"")


def test_a_stream_of_an_unknown_job_is_a_problem(client: FlaskClient, refused: Any) -> None:
    refused(client.get("/v1/customization/jobs/job_x/events", headers=SSE), 404)


def test_a_stream_sends_a_sign_of_life_when_nothing_happens(
    serving: Serving, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "_HEARTBEAT_S", 0.2)
    with client.get(_url(serving.submit()), headers=SSE) as response:
        parts = iter(response.response)
        assert "still here" in "".join(str(next(parts)) for _ in range(3))


def test_streams_are_turned_away_when_all_slots_are_taken_and_let_in_when_one_is_free(
    app: Flask, serving: Serving, client: FlaskClient, refused: Any
) -> None:
    job = serving.submit()
    streams = _memory(app).streams
    releases = [streams.take() for _ in range(streams.limit)]
    for url, headers in ((_url(job), SSE), (f"{_url(job)}?after=1&wait=5", {})):
        response = client.get(url, headers=headers)
        assert refused(response, 503)["retryable"] is True
        assert int(response.headers["Retry-After"]) > 0
    # Ordinary requests, and a poll that has something to say, need no slot.
    assert client.get(_url(job)).status_code == 200
    assert client.get(f"{_url(job)}?wait=5").get_json()["data"]
    releases[0]()
    releases[0]()  # giving back twice must not make two slots of one
    with client.get(_url(job), headers=SSE) as first:
        next(iter(first.response))
        refused(client.get(_url(job), headers=SSE), 503)
    with client.get(_url(job), headers=SSE) as after_the_first_closed:
        assert after_the_first_closed.status_code == 200


def test_open_answers_end_when_the_server_stops(app: Flask, serving: Serving, client: FlaskClient) -> None:
    job = serving.submit()
    _memory(app).streams.stop_when(lambda: True)
    with client.get(_url(job), headers=SSE) as response:
        assert [message["id"] for message in _messages(response.get_data(as_text=True))] == [1]
    began_at = time.monotonic()
    assert client.get(f"{_url(job)}?after=1&wait=30").get_json()["data"] == []
    assert time.monotonic() - began_at < 5
