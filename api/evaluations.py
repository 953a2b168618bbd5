"""/v1/evaluations: any model or variant in benchmarks or on a dataset, outside of a job."""

from typing import Annotated

from apiflask import APIBlueprint
from flask import Response
from pydantic import Field

from api.admission import admit_evaluation
from api.auth import needs, project_id
from api.events import EventsQuery, StreamHeaders, events_of
from api.idempotency import CreateHeaders, idempotency
from api.openapi import also_as_stream
from api.pages import PageQuery
from api.queue import ring
from api.state import state
from foundry.spec.access import Scope
from foundry.spec.evaluation import Evaluation, EvaluationSpec
from foundry.spec.lifecycle import JobEvent, Status, WorkKind
from foundry.spec.resources import Page
from foundry.store.records import Idempotency

evaluations = APIBlueprint("evaluations", __name__)


class EvaluationsQuery(PageQuery):
    """A page of evaluations: of one status, of one model, or all."""

    status: Status | None = None
    """Only evaluations that stand there."""
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Only evaluations of this variant or model; that of a teacher beside it is none."""


@evaluations.post("/evaluations")
@needs(Scope.JOBS_WRITE)
@evaluations.input(EvaluationSpec)
@evaluations.input(CreateHeaders, location="headers")
@evaluations.output(Evaluation, 201)
@evaluations.doc(responses=[400, 415])
def create(json_data: EvaluationSpec, headers_data: CreateHeaders) -> Evaluation:
    """Measure a model or a variant: in a suite, on the held-out documents of a dataset, or both.

    Workers carry it out like a job, and it counts against the same quota. A task without data is reported as missing,
    and the others run all the same.
    """
    return submit(json_data, idempotency(headers_data, json_data.model_dump_json()))


@evaluations.get("/evaluations")
@needs(Scope.JOBS_READ)
@evaluations.input(EvaluationsQuery, location="query")
@evaluations.output(Page[Evaluation])
def list_evaluations(query_data: EvaluationsQuery) -> Page[Evaluation]:
    """The project's evaluations, newest first."""
    query = query_data
    return state().evaluations.list(project_id(), query.limit, query.after, query.status, query.model)


@evaluations.get("/evaluations/<evaluation_id>")
@needs(Scope.JOBS_READ)
@evaluations.output(Evaluation)
def get_evaluation(evaluation_id: str) -> Evaluation:
    """One evaluation as it stands; `result` has every task that is finished, with its standard error."""
    return state().evaluations.get(project_id(), evaluation_id)


@evaluations.delete("/evaluations/<evaluation_id>")
@needs(Scope.JOBS_WRITE)
@evaluations.output({}, 204)
@evaluations.doc(responses=[409])
def delete(evaluation_id: str) -> str:
    """Delete an ended evaluation with its result and history. Refused with 409 while it goes on."""
    state().removal.job(project_id(), evaluation_id, WorkKind.EVALUATION)
    return ""


@evaluations.post("/evaluations/<evaluation_id>/cancel")
@needs(Scope.JOBS_WRITE)
@evaluations.output(Evaluation)
@evaluations.doc(responses=[409])
def cancel(evaluation_id: str) -> Evaluation:
    """Stop an evaluation for good; what is finished stays in its result."""
    return state().evaluations.order(project_id(), evaluation_id, "cancel")


@evaluations.post("/evaluations/<evaluation_id>/pause")
@needs(Scope.JOBS_WRITE)
@evaluations.output(Evaluation)
@evaluations.doc(responses=[409])
def pause(evaluation_id: str) -> Evaluation:
    """Let an evaluation wait; it stops between two batches."""
    return state().evaluations.order(project_id(), evaluation_id, "pause")


@evaluations.post("/evaluations/<evaluation_id>/resume")
@needs(Scope.JOBS_WRITE)
@evaluations.output(Evaluation)
@evaluations.doc(responses=[409])
def resume(evaluation_id: str) -> Evaluation:
    """Queue a paused evaluation again; finished tasks are not run again where their worker still has them."""
    return queue_again(evaluation_id)


@evaluations.get("/evaluations/<evaluation_id>/events")
@needs(Scope.JOBS_READ)
@evaluations.input(EventsQuery, location="query")
@evaluations.input(StreamHeaders, location="headers")
@evaluations.output(Page[JobEvent])
@evaluations.doc(responses=also_as_stream("Each event as one message whose id is `seq`; ends after the last event"))
def list_events(
    evaluation_id: str, query_data: EventsQuery, headers_data: StreamHeaders
) -> Page[JobEvent] | Response:  # fmt: skip
    """Events after `after`, oldest first; `job_id` of each is the evaluation.

    With Accept: text/event-stream they are streamed as they happen, from after Last-Event-ID or `after` on.
    """
    return events_of(state().evaluations, evaluation_id, query_data, headers_data)


def submit(spec: EvaluationSpec, once: Idempotency | None) -> Evaluation:
    """Queue an evaluation of the caller's project and tell the workers; a repeated request gets the one it made.

    Raises a `UserError` that names the field at fault.
    """
    project, memory = project_id(), state()
    if made := memory.requests.made(project, once):
        return memory.evaluations.get(project, made)
    evaluation = memory.evaluations.submit(project, spec, admit_evaluation(spec, project), once)
    ring(memory.settings.broker_url, evaluation.id)
    return evaluation


def queue_again(evaluation_id: str) -> Evaluation:
    """Resume a paused evaluation of the caller's project and tell the workers."""
    evaluation = state().evaluations.order(project_id(), evaluation_id, "resume")
    ring(state().settings.broker_url, evaluation.id)
    return evaluation
