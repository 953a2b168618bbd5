"""An evaluation: one model measured in benchmarks or on a dataset, by itself and not inside of a job."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from foundry.errors import FieldProblem, InvalidSpec, UnknownFormat, UnknownTask
from foundry.spec.formats import FORMATS
from foundry.spec.job import Text
from foundry.spec.lifecycle import Progress, Status
from foundry.spec.record import Count, CreatedAt, Id, Record
from foundry.spec.resources import Reason, Resource
from foundry.spec.suite import Suite, SuiteResult, find_suite, nearest, only, suites, with_tasks
from foundry.spec.variant import Metrics

PLAIN = "safetensors"
"""The form that transformers opens; every other format is opened by a runtime of its own."""
_QUICK = "quick"


class EvaluationSpec(Record):
    """What is to be measured of which model: a suite or some tasks, a dataset, or both."""

    model: Text
    """The id of a variant (var_...) or of a registered model (mdl_...)."""
    format: str = PLAIN
    """Which of a variant's formats answers: safetensors, or a GGUF through llama.cpp, such as gguf:q4_k_m."""
    suite: str | None = None
    """minitron or quick."""
    tasks: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """These tasks alone; without a suite, of whichever suite has them."""
    limit: Count | None = None
    """Examples of each task, in place of the suite's own limit."""
    data: Text | None = None
    """The id of a dataset: its held-out documents are scored."""
    teacher: Text | None = None
    """With `data`: how close the model is to this one; an id like `model`."""
    tokens: Count = 65_536
    """With `data`: how much held-out text is read."""
    name: Annotated[str, StringConstraints(max_length=200)] = ""
    """For people; may be empty."""

    @field_validator("suite")
    @classmethod
    def _known_suite(cls, name: str | None) -> str | None:
        return find_suite(name).name if name is not None else None

    @field_validator("format")
    @classmethod
    def _known_format(cls, text: str) -> str:
        open_here = [form for form in FORMATS if form == PLAIN or form.startswith("gguf:")]
        if text not in open_here:
            raise UnknownFormat(
                f"{text!r:.80} cannot be put to benchmarks; the formats are {', '.join(open_here)}", pointer="/format"
            )
        return text

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.suite is None and not self.tasks and self.data is None:
            raise _at("suite", f"give a suite ({' or '.join(suites())}), tasks, or the data to measure on")
        if self.data is None and self.teacher is not None:
            raise _at("teacher", "a teacher is compared with on data: give the id of a dataset as data")
        if self.data is not None and self.format != PLAIN:
            raise _at("data", f"{self.format} is scored in benchmarks only: leave data out, or take {PLAIN}")
        self.chosen_suite()
        return self

    def chosen_suite(self) -> Suite | None:
        """The tasks to run with their settings; None when there is data alone. Raises `UnknownTask`."""
        if self.suite is not None:
            return only(find_suite(self.suite), self.tasks) if self.tasks else find_suite(self.suite)
        if not self.tasks:
            return None
        if (found := with_tasks(find_suite(_QUICK), self.tasks)) is not None:
            return found
        known = list(dict.fromkeys(task.task for suite in suites().values() for task in suite.tasks))
        unknown = next((task for task in self.tasks if task not in known), None)
        if unknown is None:
            raise UnknownTask(f"no one suite has all of {', '.join(self.tasks)}; ask for them apart", pointer="/tasks")
        raise UnknownTask(f"no suite has the task {unknown!r}; {nearest(unknown, known)}", pointer="/tasks")


def _at(field: str, detail: str) -> InvalidSpec:
    """What several fields make impossible together, at the one that is best changed."""
    return InvalidSpec([FieldProblem(pointer=f"/{field}", code="value_error", detail=detail)])


class EvaluationResult(Record):
    """What was found so far; a task that is finished stays, whatever becomes of the rest."""

    benchmarks: SuiteResult | None = None
    """Null where none were asked for, and until the first task is finished."""
    held_out: tuple[Metrics, ...] = ()
    """The model alone, or its teacher and then the model."""


class Evaluation(Resource):
    """One evaluation. It is carried out by the same workers as jobs, under the same quota, with the same life."""

    id: Id
    name: str
    """For people, from the spec; may be empty."""
    status: Status
    """Where it stands, as of a job."""
    is_terminal: bool
    """Whether it has ended: its status will not change."""
    status_reason: Reason | None = None
    """Why it failed, or why it was paused without being asked to; else null."""
    spec: EvaluationSpec
    """What was asked for, with every default."""
    progress: Progress | None = None
    """Tasks of the suite that are done; null before the first, and where no suite runs."""
    attempt: int
    """How many times a worker has claimed it."""
    result: EvaluationResult | None = None
    """What was found so far; null before the first finding."""
    created_at: CreatedAt
    started_at: datetime | None = None
    """When a worker first claimed it; null before."""
    finished_at: datetime | None = None
    """When it ended; null until then."""
