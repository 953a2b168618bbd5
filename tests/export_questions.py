"""The same exam about another file, and a quicker way to sit it."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from foundry.engine.export.exam import Exam
from foundry.engine.export.runtime import Answers, Questions
from foundry.errors import ExportFailed


def about(exam: Exam, model: Path) -> Questions:
    """The questions of an exam, put to this model."""
    return replace(exam.questions, model=str(model))


def ask_here(module: str, questions: Questions, *, should_stop: Callable[[], bool]) -> Answers:
    """The runtime's own answers from the test's process, without the seconds that torch takes to start in another.

    What a process of its own is for is tested by what asks in one.
    """
    try:
        answers: Answers = importlib.import_module(module).answer(questions)
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportFailed(f"the runtime refused it: {error}") from error
    return answers
