"""The same exam about another file."""

from dataclasses import replace
from pathlib import Path

from foundry.engine.export.exam import Exam
from foundry.engine.export.runtime import Questions


def about(exam: Exam, model: Path) -> Questions:
    """The questions of an exam, put to this model."""
    return replace(exam.questions, model=str(model))
