"""Makes a job's report at the end of its run, however that went, and lays it beside the variants."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.engine.export.manifest import NAME as MANIFEST
from foundry.engine.export.manifest import artifacts_in, read_manifest
from foundry.engine.report.gather import gather
from foundry.engine.report.write import write_report
from foundry.engine.workspace import Workspace, write_json
from foundry.spec.lifecycle import EventType

if TYPE_CHECKING:  # `foundry report` answers without torch
    from foundry.engine.context import RunContext

FOLDER = "report"


def make_report(workspace: Workspace, folder: Path | None = None) -> list[Path]:
    """Write the report of a workspace into its own folder `report`, or into another; works at any time of a job."""
    return write_report(gather(workspace), folder or workspace.root / FOLDER)


def report_run(workspace: Workspace, context: "RunContext") -> None:
    """The report of a run that has ended, and a copy in every finished variant, under its manifest.

    A report that cannot be made is a warning: no job fails for its report. A variant that cannot take it is an error,
    for its manifest would be wrong.
    """
    try:
        written = make_report(workspace)
    except Exception as error:
        message = f"the report could not be made: {type(error).__name__}: {error}"
        context.report(EventType.WARNING, message, level="warning")
        return
    if workspace.is_done("export"):
        for relative in workspace.result("export")["variants"]:
            _carry(written, workspace.root / relative)


def _carry(written: list[Path], variant: Path) -> None:
    for path in written:
        shutil.copyfile(path, variant / path.name)
    manifest = read_manifest(variant).model_copy(update={"files": artifacts_in(variant)})
    write_json(variant / MANIFEST, manifest.model_dump(mode="json"))
