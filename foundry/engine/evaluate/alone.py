"""An evaluation that is no stage of a job: one model in a suite, on held-out text, or both, in a folder of its own.

evaluation.json   what is asked, with models and data as this machine finds them
held_out.json     the figures on held-out text, once they are known
tasks/TASK.json   each finished task; started again, the run goes on behind them
result.json       all of it; where it stands, the evaluation is done
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.engine.workspace import read_json, write_json
from foundry.errors import FoundryError, MissingExtra
from foundry.spec.evaluation import PLAIN, EvaluationResult, EvaluationSpec
from foundry.spec.lifecycle import EventType
from foundry.spec.record import Record, parse
from foundry.spec.suite import SuiteResult
from foundry.spec.variant import Metrics

if TYPE_CHECKING:  # a worker writes the request without torch
    from foundry.engine.context import RunContext

REQUEST, RESULT = "evaluation.json", "result.json"
_HELD_OUT, _TASKS = "held_out.json", "tasks"


class Request(Record):
    """What the run of an evaluation finds in its folder."""

    spec: EvaluationSpec
    model: str
    """A folder, a variant's folder, or a hub id."""
    name: str
    teacher: str | None = None
    teacher_name: str | None = None
    data: str | None = None


def write_request(folder: Path, request: Request) -> None:
    """Written before the run starts."""
    write_json(folder / REQUEST, request.model_dump(mode="json"))


def is_evaluation(folder: Path) -> bool:
    """Whether the folder is of an evaluation and not of a job."""
    return (folder / REQUEST).is_file()


def evaluate_alone(folder: Path, context: "RunContext") -> None:
    """Carry out what the folder asks for, or what is left of it. Raises what the engine raises, and `Stopped`."""
    request = parse(Request, read_json(folder / REQUEST))
    context.report(EventType.STAGE_STARTED, "evaluate started", stage="evaluate")
    result = EvaluationResult()
    if request.data is not None:
        result = result.model_copy(update={"held_out": _held_out(folder, request, context)})
        _tell(result, "held-out text is scored", context)
    if request.spec.chosen_suite() is not None:
        result = _benchmarks(folder, request, result, context)
    write_json(folder / RESULT, result.model_dump(mode="json"))
    context.report(EventType.STAGE_COMPLETED, "evaluate completed", stage="evaluate")


def _held_out(folder: Path, request: Request, context: "RunContext") -> tuple[Metrics, ...]:
    path = folder / _HELD_OUT
    try:
        return tuple(parse(Metrics, row) for row in read_json(path))
    except (OSError, ValueError, FoundryError):  # not yet, or of another version
        pass
    from foundry.engine.evaluate.domain import evaluate_on

    assert request.data is not None
    rows = evaluate_on(
        request.model, Path(request.data), context, teacher=request.teacher, tokens=request.spec.tokens
    )  # fmt: skip
    names = [request.teacher_name, request.name] if request.teacher else [request.name]
    rows = [row.model_copy(update={"model": name}) for row, name in zip(rows, names, strict=True)]
    write_json(path, [row.model_dump(mode="json", exclude_none=True) for row in rows])
    return tuple(rows)


def _benchmarks(folder: Path, request: Request, before: EvaluationResult, context: "RunContext") -> EvaluationResult:
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm_eval", "evaluate")
    from foundry.engine.evaluate.suites.model import evaluate_model
    from foundry.engine.evaluate.suites.run import Conditions

    suite = request.spec.chosen_suite()
    assert suite is not None

    def take(so_far: SuiteResult) -> None:
        found = before.model_copy(update={"benchmarks": so_far})
        newest = so_far.tasks[-1]
        _tell(found, f"{newest.task} is {newest.status}", context, task=newest.task, value=newest.value,
              standard_error=newest.standard_error)  # fmt: skip
        context.report(EventType.CHECKPOINT, f"{newest.task} is kept", stage="evaluate", step=len(so_far.tasks))

    conditions = Conditions(data_dir=context.benchmarks, limit=request.spec.limit, allow_code=context.may_run_code)
    form = None if request.spec.format == PLAIN else request.spec.format
    whole = evaluate_model(
        request.model, suite, folder / _TASKS, conditions, context, name=request.name, form=form, take=take
    )
    return before.model_copy(update={"benchmarks": whole})


def _tell(result: EvaluationResult, message: str, context: "RunContext", **more: Any) -> None:
    context.report(EventType.METRICS, message, stage="evaluate", result=result.model_dump(mode="json"), **more)
