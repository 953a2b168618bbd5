"""`foundry report`: a job's report from the service, or a run's made again from its folder."""

from importlib.util import find_spec
from pathlib import Path

from foundry.client.jobs import ReportForm
from foundry.errors import MissingExtra, UserError

FORMS: tuple[ReportForm, ...] = ("html", "md", "json")


def fetch(job_id: str, folder: Path) -> list[Path]:
    """Write the report of a job of the service in all its forms; raises `NotFound` while there is none."""
    from foundry.cli.service_client import service

    written: list[Path] = []
    with service() as foundry:
        for form in FORMS:
            content = foundry.jobs.report_text(job_id, form)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"report.{form}"
            path.write_text(content, encoding="utf-8")
            written.append(path)
    return written


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
