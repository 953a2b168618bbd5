"""`foundry report`: a run's report, made again from its folder."""

from importlib.util import find_spec
from pathlib import Path

from foundry.errors import MissingExtra, UserError


def report_on(folder: Path, output: Path | None) -> list[Path]:
    """Write the report of a run, finished or not; raises `UserError` for a folder that is none."""
    if find_spec("jinja2") is None:
        raise MissingExtra("jinja2", "engine")
    if not (folder / "spec.json").is_file():
        raise UserError(
            f"{folder} is not the folder of a run: it holds no spec.json. Give what `foundry run` was given with -o; "
            "a variant holds its report already, as report.html"
        )
    from foundry.engine.report.make import make_report
    from foundry.engine.workspace import Workspace

    return make_report(Workspace(folder), output)
