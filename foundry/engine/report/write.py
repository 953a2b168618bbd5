"""The report as files: report.html for people, report.md for a repository, report.json for programs."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from foundry.engine.report import plots
from foundry.engine.report.scores import benchmark_table
from foundry.engine.workspace import write_json
from foundry.spec import words
from foundry.spec.report import JobReport, TargetReport
from foundry.spec.variant import Metrics, device_row

HTML, MARKDOWN, JSON = "report.html", "report.md", "report.json"
_TEMPLATES = files("foundry") / "data" / "report"


def write_report(report: JobReport, folder: Path) -> list[Path]:
    """Write all three into a folder; the page stands alone and asks nothing of any other place."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, report.model_dump(mode="json"))
    (folder / MARKDOWN).write_text(markdown(report), encoding="utf-8")
    (folder / HTML).write_text(page(report), encoding="utf-8")
    return [folder / name for name in (HTML, MARKDOWN, JSON)]


def page(report: JobReport) -> str:
    """The HTML page."""
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **_view(report),
            style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
            curves=[_drawn(figure) for figure in plots.curves(report)],
            sizes=_drawn(plots.size_against_quality(report)),
            importance=[_drawn(figure) for figure in plots.importance(report)],
        )
    )


def markdown(report: JobReport) -> str:
    """The same figures without the drawings."""
    return _environment().get_template("report.md.j2").render(**_view(report))


def _view(report: JobReport) -> dict[str, Any]:
    spec = report.spec.model_dump(mode="json", exclude_none=True)
    return {
        "report": report,
        "benchmarks": benchmark_table(report),
        "spec_text": yaml.safe_dump(spec, sort_keys=False, allow_unicode=True),
        "teacher": Path(report.spec.teacher.partition("@")[0]).name,
        "headlines": [_headline(place, target) for place, target in enumerate(report.targets)],
        "asked": [stage for stage in ("correct", "prune", "distill", "lora") if getattr(report.spec, stage)],
    }


def _headline(place: int, target: TargetReport) -> dict[str, Any]:
    """What a reader wants to know of a target first."""
    models = [row for row in target.metrics if row.runtime is None]
    teacher = next((row for row in reversed(models) if row.model in ("corrected", "teacher")), None)
    final = models[-1] if models and models[-1] is not teacher else None
    return {
        "target": target, "colour": plots.colour_of(place), "teacher": teacher, "final": final,
        "device": device_row(target.metrics, target.budget.format) if target.budget else None,
        "kept": _kept(final, teacher),
    }  # fmt: skip


def _kept(final: Metrics | None, teacher: Metrics | None) -> float | None:
    """Share of the teacher's parameters."""
    if final is None or teacher is None or not final.parameters or not teacher.parameters:
        return None
    return final.parameters / teacher.parameters


def _drawn(figure: plots.Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    return {"svg": Markup(figure.svg), "caption": figure.caption, "legend": figure.legend}


@cache
def _environment() -> Environment:
    def load(name: str) -> str:
        return (_TEMPLATES / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load), autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    for function in (
        words.number, words.size, words.share, words.decimals, words.signed, words.duration, words.spread, words.shape,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    return environment
