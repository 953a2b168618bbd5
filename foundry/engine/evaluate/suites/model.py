"""The entry for whoever wants a model or a variant scored: a worker, the command line, a notebook."""

from pathlib import Path

from lm_eval.tasks import TaskManager

from foundry.engine.context import RunContext
from foundry.engine.evaluate.locate import find_model
from foundry.engine.evaluate.suites.harness import HarnessModel
from foundry.engine.evaluate.suites.run import Conditions, run_suite
from foundry.engine.models import load_model, load_tokenizer
from foundry.intake.checkpoint import checkpoint_sha256, open_checkpoint
from foundry.spec.suite import Suite, SuiteResult


def evaluate_model(
    model: str | Path, suite: Suite, output: Path, conditions: Conditions, context: RunContext, *,
    name: str | None = None, manager: TaskManager | None = None,
) -> SuiteResult:  # fmt: skip
    """Score a folder, a hub id or a variant's folder in every task of a suite; each result lies in `output`.

    Progress is one event a task through `context`; results that stand there from an earlier run are kept. Raises
    `TeacherNotFound`, `DamagedCheckpoint` when the model does not load, `OutOfMemory`, and `Stopped`.
    """
    folder, found = find_model(model)
    open_checkpoint(folder)
    opened = load_model(folder, dtype=context.dtype, device=context.device)
    lm = HarnessModel(opened, load_tokenizer(folder), context)
    return run_suite(suite, lm, name or found, checkpoint_sha256(folder), output, conditions, context, manager=manager)
