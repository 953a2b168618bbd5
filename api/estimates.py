"""/v1/customization/estimates: what a job would give, before anything is spent on it."""

from apiflask import APIBlueprint

from api.admission import estimate_of
from foundry.spec.estimate import Estimate
from foundry.spec.job import JobSpec

estimates = APIBlueprint("estimates", __name__)


@estimates.post("/customization/estimates")
@estimates.input(JobSpec)
@estimates.output(Estimate)
@estimates.doc(responses=[400, 415])
def estimate(json_data: JobSpec) -> Estimate:
    """Shape, parameters and bytes for each target and format; nothing is stored.

    A budget that cannot be met is refused with 422 and the smallest size that can.
    """
    return estimate_of(json_data)
