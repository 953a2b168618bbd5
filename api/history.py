"""/v1/customization/jobs/ID/{attempts,checkpoints,logs,metrics}: a job's history from other sides."""

from apiflask import APIBlueprint

from api.auth import needs, project_id
from api.pages import NumberedQuery
from api.state import state
from foundry.spec.access import Scope
from foundry.spec.lifecycle import JobEvent, Level
from foundry.spec.resources import Attempt, JobCheckpoint, JobMetrics, Page

history = APIBlueprint("history", __name__)


class LogsQuery(NumberedQuery):
    """A page of a log."""

    level: Level = "info"
    """The least level that is shown."""


@history.get("/customization/jobs/<job_id>/attempts")
@needs(Scope.JOBS_READ)
@history.input(NumberedQuery, location="query")
@history.output(Page[Attempt])
def list_attempts(job_id: str, query_data: NumberedQuery) -> Page[Attempt]:
    """Every claim of the job by a worker, in order."""
    return state().history.attempts(project_id(), job_id, query_data.limit, query_data.after)


@history.get("/customization/jobs/<job_id>/checkpoints")
@needs(Scope.JOBS_READ)
@history.input(NumberedQuery, location="query")
@history.output(Page[JobCheckpoint])
def list_checkpoints(job_id: str, query_data: NumberedQuery) -> Page[JobCheckpoint]:
    """Every checkpoint that was written, in order; a resumed job goes on at the last one that is intact."""
    return state().history.checkpoints(project_id(), job_id, query_data.limit, query_data.after)


@history.get("/customization/jobs/<job_id>/metrics")
@needs(Scope.JOBS_READ)
@history.input(NumberedQuery, location="query")
@history.output(Page[JobMetrics])
def list_metrics(job_id: str, query_data: NumberedQuery) -> Page[JobMetrics]:
    """Losses, speeds and whatever else the run measured, in order."""
    return state().history.metrics(project_id(), job_id, query_data.limit, query_data.after)


@history.get("/customization/jobs/<job_id>/logs")
@needs(Scope.JOBS_READ)
@history.input(LogsQuery, location="query")
@history.output(Page[JobEvent])
def list_logs(job_id: str, query_data: LogsQuery) -> Page[JobEvent]:
    """What the job said in words, in order, without progress and figures."""
    return state().history.logs(project_id(), job_id, query_data.limit, query_data.after, query_data.level)
