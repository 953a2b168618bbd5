"""The benchmarks of a job: its teacher and every finished student in the suite that the spec names."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from foundry.engine.workspace import Workspace, write_json
from foundry.errors import MissingExtra
from foundry.spec.job import JobSpec
from foundry.spec.suite import find_suite

if TYPE_CHECKING:  # a report is made without torch
    from foundry.engine.context import RunContext

NAME = "benchmarks.json"
TEACHER = "teacher"


def check_suite(spec: JobSpec) -> None:
    """Say before anything is computed that the harness is not installed. Raises `MissingExtra`."""
    if spec.evaluate.suite is not None and find_spec("lm_eval") is None:
        raise MissingExtra("lm_eval", "evaluate")


def run_benchmarks(spec: JobSpec, workspace: Workspace, context: "RunContext") -> None:
    """Write benchmarks.json, one result a model; tasks that are finished are not run again. Raises `Stopped`."""
    if spec.evaluate.suite is None:
        return
    # The harness is an extra: a job without a suite does without.
    from foundry.engine.evaluate.suites.model import evaluate_model
    from foundry.engine.evaluate.suites.run import Conditions

    suite = find_suite(spec.evaluate.suite)
    conditions = Conditions(data_dir=context.benchmarks, limit=spec.evaluate.limit, allow_code=context.may_run_code)
    models = {TEACHER: workspace.teacher} | {name: str(workspace.student(name)) for name in spec.target_names}
    results = []
    for name, folder in models.items():
        output = workspace.stage("evaluate") / "benchmarks" / name
        results.append(evaluate_model(folder, suite, output, conditions, context, name=name))
        write_json(workspace.stage("evaluate") / NAME, [result.model_dump(mode="json") for result in results])
