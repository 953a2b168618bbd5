"""What must hold of every job's history, whatever was killed: read from the tables by plain SQL, with none of our code.

This is the judge of the kill matrix, so it shares nothing with what it judges but the names of tables and columns.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

TAKES_UP = frozenset({"job.submitted", "job.requeued", "attempt.lost", "job.resumed"})
"""After one of these, and after nothing else, a worker may start an attempt."""
ENDS = frozenset({"job.succeeded", "job.failed", "job.cancelled"})
MOVES = TAKES_UP | ENDS | {"job.started", "job.paused"}


class Event(NamedTuple):
    seq: int
    attempt: int
    type: str
    message: str
    data: Mapping[str, Any]


def violations(connection: Connection, acknowledged: Collection[str], *, ended: bool = True) -> list[str]:
    """Every broken promise, in words. `acknowledged` are the jobs whose submit was answered with 201; `ended` whether
    all of them must have succeeded by now."""
    rows = connection.execute(text("SELECT id, status, epoch, last_seq FROM jobs")).all()
    there = {row.id for row in rows}
    found = [f"{job_id}: acknowledged, but there is no such job" for job_id in acknowledged if job_id not in there]
    for row in rows:
        events = events_of(connection, row.id)
        checks = (_of_history(events, row), _of_steps(events), _of_results(connection, events, row))
        found += [f"{row.id}: {what}" for check in checks for what in check]
        if ended and row.id in acknowledged and row.status != "succeeded":
            found.append(f"{row.id}: acknowledged, but it is {row.status}")
    return found


def events_of(connection: Connection, job_id: str) -> list[Event]:
    """The history of a job as it stands in the table."""
    query = text("SELECT seq, attempt, type, message, data FROM events WHERE job_id = :job ORDER BY seq")
    rows = connection.execute(query, {"job": job_id})
    return [Event(row.seq, row.attempt, row.type, row.message, json.loads(row.data)) for row in rows]


def damaged_blobs(connection: Connection, artifacts: Path) -> list[str]:
    """Published files whose bytes are not there or not those of their digest."""
    found = []
    for digest, size in connection.execute(text("SELECT DISTINCT sha256, bytes FROM variant_files")):
        path = artifacts / "blobs" / digest[:2] / digest
        if not path.is_file():
            found.append(f"{digest}: published, but not in the store")
        elif path.stat().st_size != size or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            found.append(f"{digest}: published with other bytes")
    return found


def _of_history(events: Sequence[Event], job: Any) -> Iterator[str]:
    """Numbers without a gap, epochs that only rise, nothing by an attempt that is over, nothing after the end."""
    if [event.seq for event in events] != list(range(1, job.last_seq + 1)):
        yield f"seq has a gap or a double: {[event.seq for event in events][:50]}, last_seq {job.last_seq}"
    epoch, last = 0, ""
    for event in events:
        if last in ENDS:
            yield f"event {event.seq} ({event.type}) follows the end"
        if event.type == "job.started":
            if event.attempt != epoch + 1:
                yield f"attempt {event.attempt} starts after attempt {epoch}"
            if last not in TAKES_UP:
                yield f"attempt {event.attempt} starts after {last}"
            epoch = event.attempt
        elif event.attempt != epoch:
            yield f"event {event.seq} ({event.type}) was written by attempt {event.attempt} while {epoch} had the job"
        if event.type in MOVES:
            last = event.type
    if epoch != job.epoch:
        yield f"the row says epoch {job.epoch}, the history {epoch}"


def _of_steps(events: Sequence[Event]) -> Iterator[str]:
    """What was acknowledged is not done a second time: stages that are done, steps up to a checkpoint."""
    done: set[str] = set()
    kept: dict[str, int] = {}
    begun: dict[str, int] = {}  # stages that the attempt has begun, with the step that it must go on at
    for event in events:
        stage = str(event.data.get("stage"))
        if event.type == "job.started":
            begun = {}
        elif event.type == "stage.started":
            begun[stage] = kept.get(stage, 0)
            if stage in done:
                yield f"{stage} was begun again (event {event.seq}), though it was done"
        elif event.type == "log" and f"{stage}: resumed at step" in event.message:
            if event.data["step"] < begun.pop(stage, 0):
                yield f"{stage} resumed at step {event.data['step']}, though step {kept[stage]} was acknowledged"
        elif event.type in ("checkpoint.created", "stage.completed"):
            if begun.pop(stage, 0) > 0:
                yield f"{stage} began anew (event {event.seq}), though step {kept[stage]} was acknowledged"
            if event.type == "stage.completed":
                done.add(stage)
            elif "step" in event.data:
                kept[stage] = max(kept.get(stage, 0), event.data["step"])


def _of_results(connection: Connection, events: Sequence[Event], job: Any) -> Iterator[str]:
    """At most one result for each target, all of one attempt, and none of a job that did not succeed."""
    query = text("SELECT target FROM variants WHERE job_id = :job")
    targets = connection.execute(query, {"job": job.id}).scalars().all()
    published = [event for event in events if event.type == "variant.published"]
    if len(set(targets)) != len(targets) or len(published) != len(targets):
        yield f"published {len(published)} times for the targets {sorted(targets)}"
    if len({event.attempt for event in published}) > 1:
        yield "two attempts have published"
    if bool(targets) != (job.status == "succeeded"):
        yield f"is {job.status} with {len(targets)} variants"
    if sum(event.type == "job.succeeded" for event in events) != (job.status == "succeeded"):
        yield f"is {job.status}, and its history has another number of successes"
