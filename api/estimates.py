"""/v1/customization/estimates: what a job would give and take, before anything is spent on it."""

from apiflask import APIBlueprint

from api.admission import estimate_of
from api.auth import needs, project_id
from api.state import state
from foundry.spec.access import Scope
from foundry.spec.forecast import JobEstimate, forecast
from foundry.spec.job import JobSpec

estimates = APIBlueprint("estimates", __name__)


@estimates.post("/customization/estimates")
@needs(Scope.JOBS_READ)
@estimates.input(JobSpec)
@estimates.output(JobEstimate)
@estimates.doc(responses=[400, 415])
def estimate(json_data: JobSpec) -> JobEstimate:
    """Shape, parameters and bytes for each target and format; memory, disk, time and cost of the run. Stores nothing.

    A budget that cannot be met is refused with 422 and the smallest size that can.
    """
    memory = state()
    spec = memory.targets.resolve(project_id(), json_data)
    found = estimate_of(spec, project_id())
    settings, forecasts = memory.settings, memory.forecasts
    run = forecast(
        spec, found, forecasts.measured(), forecasts.disk_free_bytes(), settings.cost_per_hour, settings.currency
    )
    return JobEstimate(**dict(found), run=run)
