"""/v1/customization/jobs/ID/events and the same of evaluations: a history as a list, a long poll or a stream."""

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Protocol

import structlog
from apiflask import APIBlueprint
from flask import Response, request
from pydantic import Field

from api.auth import needs, project_id
from api.openapi import EVENT_STREAM, also_as_stream
from api.records import Input
from api.state import State, state
from api.watcher import Ticket
from foundry.errors import FoundryError
from foundry.spec.access import Scope
from foundry.spec.evaluation import Evaluation
from foundry.spec.lifecycle import LAST_EVENTS, JobEvent
from foundry.spec.resources import Job, Page

events = APIBlueprint("events", __name__)
_log = structlog.get_logger()
_PAUSE_S = 0.5
"""How often a waiting answer looks whether the server wants to stop."""
_HEARTBEAT_S = 15.0
_LONGEST_STREAM_S = 600.0
"""Then the reader connects again with the last id it saw, and its key is checked again."""
Seq = Annotated[int, Field(ge=0, lt=2**31)]


class EventsQuery(Input):
    """From which event on, and how long to wait for one."""

    after: Seq = 0
    """The `seq` of the last event that is known already."""
    wait: Annotated[float, Field(ge=0, le=30)] = 0
    """Seconds to wait when there is no event yet."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """The most events that the answer may hold."""


class StreamHeaders(Input):
    """What a reader of a stream sends when it connects again."""

    last_event_id: Seq | None = None
    """The id of the last message that arrived."""


@events.get("/customization/jobs/<job_id>/events")
@needs(Scope.JOBS_READ)
@events.input(EventsQuery, location="query")
@events.input(StreamHeaders, location="headers")
@events.output(Page[JobEvent])
@events.doc(responses=also_as_stream("Each event as one message whose id is `seq`; ends after the job's last event"))
def list_events(job_id: str, query_data: EventsQuery, headers_data: StreamHeaders) -> Page[JobEvent] | Response:
    """Events after `after`, oldest first.

    With Accept: text/event-stream they are streamed as they happen, from after Last-Event-ID or `after` on.
    """
    return events_of(state().jobs, job_id, query_data, headers_data)


class Eventful(Protocol):
    """A store of work that has events: jobs, evaluations."""

    def get(self, project_id: str, work_id: str, /) -> Job | Evaluation: ...

    def events(self, project_id: str, work_id: str, after: int, limit: int, /) -> Sequence[JobEvent]: ...


def events_of(work: Eventful, work_id: str, query: EventsQuery, headers: StreamHeaders) -> Page[JobEvent] | Response:
    """The events of one job or evaluation, in the form that the running request accepts."""
    if request.accept_mimetypes.best_match(["application/json", EVENT_STREAM]) == EVENT_STREAM:
        after = query.after if headers.last_event_id is None else headers.last_event_id
        return _stream(_Reader(work, project_id(), work_id, after))
    return _poll(_Reader(work, project_id(), work_id, query.after), query)


class _Reader:
    """Reads the events of one job or evaluation in order and remembers how far it is."""

    def __init__(self, work: Eventful, project: str, work_id: str, after: int) -> None:
        self._work, self._project, self.work_id = work, project, work_id
        self.after = after
        self.ended = False
        """Whether the job is over and its last event has been read."""

    def read(self, limit: int) -> Sequence[JobEvent]:
        """The next events; empty when there are none yet. Raises `NotFound`."""
        return self.take(*self.look(limit))

    def look(self, limit: int) -> tuple[Sequence[JobEvent], bool]:
        """The next events, and whether the job has none after them; the reader stays where it is."""
        # The status first: an event that is written between the two reads must not be missed.
        is_terminal = self._work.get(self._project, self.work_id).is_terminal
        found = self._work.events(self._project, self.work_id, self.after, limit)
        # Between the reads the job may have ended: then its last event is here, and no more will come.
        return found, (is_terminal and len(found) < limit) or bool(found and found[-1].type in LAST_EVENTS)

    def take(self, found: Sequence[JobEvent], ended: bool) -> Sequence[JobEvent]:
        """Go on behind these events."""
        self.ended = ended
        if found:
            self.after = found[-1].seq
        return found


def _poll(reader: _Reader, query: EventsQuery) -> Page[JobEvent]:
    found = reader.read(query.limit)
    if not found and query.wait and not reader.ended:
        release = state().streams.take()
        try:
            found = _wait(reader, query)
        finally:
            release()
    return Page(data=tuple(found), has_more=len(found) == query.limit, next=str(reader.after))


def _wait(reader: _Reader, query: EventsQuery) -> Sequence[JobEvent]:
    deadline = time.monotonic() + query.wait
    with state().watcher.watching(reader.work_id, reader.after) as ticket:
        while (left := deadline - time.monotonic()) > 0 and not state().streams.stopping:
            if ticket.wait(min(_PAUSE_S, left)):
                if (found := reader.read(query.limit)) or reader.ended:
                    return found
                ticket.saw(reader.after)
    return []


def _stream(reader: _Reader) -> Response:
    first = reader.read(limit=1000)  # before the answer begins, while an error can still be an answer of its own
    if not first and reader.ended:
        return Response(status=204)  # tells an EventSource not to connect again
    release = state().streams.take()
    response = Response(_messages(reader, first, state()), mimetype=EVENT_STREAM)
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(release)
    return response


def _messages(reader: _Reader, found: Sequence[JobEvent], memory: State) -> Iterator[str]:
    began_at = spoke_at = time.monotonic()
    yield "retry: 1000\n\n"
    with memory.watcher.watching(reader.work_id, reader.after) as ticket:
        while True:
            for event in found:
                yield f"id: {event.seq}\ndata: {event.model_dump_json()}\n\n"
            now = time.monotonic()
            if found:
                spoke_at = now
            elif now - spoke_at > _HEARTBEAT_S:
                spoke_at = now
                yield ": still here\n\n"  # keeps proxies from cutting the line, and shows whether the reader is gone
            if reader.ended or memory.streams.stopping or now - began_at > _LONGEST_STREAM_S:
                return
            try:
                found = _next(reader, ticket, memory)
            except FoundryError as error:  # the reader connects again and then gets the problem as an answer
                _log.error("stream ended", error=error.message)
                return


def _next(reader: _Reader, ticket: Ticket, memory: State) -> Sequence[JobEvent]:
    ticket.saw(reader.after)
    if not ticket.wait(_PAUSE_S):
        return []
    if ticket.latest <= reader.after:  # the database was away: ask it, and let it say so
        return reader.read(limit=1000)
    key = (reader.work_id, reader.after, ticket.latest)
    return reader.take(*memory.watcher.once(key, lambda: reader.look(limit=1000)))
