"""The stages in order. A stage that is done is not run again, so starting a workspace again resumes it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from foundry.engine.compiled import check_compiler
from foundry.engine.context import RunContext, Stopped
from foundry.engine.correct import correct
from foundry.engine.distill.stage import distill
from foundry.engine.evaluate.benchmarks import check_suite
from foundry.engine.evaluate.stage import evaluate
from foundry.engine.export.stage import check_formats, export
from foundry.engine.journal import FAILED, Journal
from foundry.engine.lora import lora
from foundry.engine.prune.stage import prune
from foundry.engine.report.make import report_run
from foundry.engine.workspace import Workspace, write_json
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import STAGES, EventType, StageName

Stage = Callable[[JobSpec, Workspace, RunContext], None]

_STAGE: dict[StageName, Stage] = {
    "correct": correct,
    "prune": prune,
    "distill": distill,
    "lora": lora,
    "evaluate": evaluate,
    "export": export,
}


def run(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    """Carry out every stage that the spec asks for and that is not done, and make the report.

    A run that fails has a report too, of what there is. Raises `Stopped` when asked to stop.
    """
    journal = Journal(workspace)
    heard = replace(context, emit=journal.hearing(context.emit))
    journal.open(context)
    try:
        _carry_out(spec, workspace, heard)
    except Stopped:
        raise
    except Exception as error:
        journal.note(FAILED, str(error) or type(error).__name__, level="error")
        report_run(workspace, heard)
        raise
    finally:
        journal.close()
    report_run(workspace, heard)


def _carry_out(spec: JobSpec, workspace: Workspace, context: RunContext) -> None:
    if not workspace.is_done("export"):
        check_formats(spec, workspace, context)
        check_suite(spec)
    compiles = spec.distill is not None and spec.distill.compile
    if compiles and not workspace.is_done("distill"):
        check_compiler(context.device)
    for stage in STAGES:
        if getattr(spec, stage) is None or workspace.is_done(stage):
            continue
        context.heed()
        context.report(EventType.STAGE_STARTED, f"{stage} started", stage=stage)
        _STAGE[stage](spec, workspace, context)
        context.report(EventType.STAGE_COMPLETED, f"{stage} completed", stage=stage, **workspace.result(stage))
    write_json(workspace.root / "result.json", {"variants": workspace.result("export")["variants"]})


def variants(workspace: Workspace) -> list[Path]:
    """The variant folders of a finished workspace."""
    return [workspace.root / relative for relative in workspace.result("export")["variants"]]
