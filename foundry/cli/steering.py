"""The commands that steer a job and look into it: estimate, pause, resume, retry, clone, logs, metrics."""

from pathlib import Path
from typing import Annotated

import typer

from foundry.cli.service_client import AsJson, JobId, service

Level = Annotated[str, typer.Option(help="debug, info, warning or error.")]


def estimate(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON.")], as_json: AsJson = False
) -> None:
    """Show what a job would give and take; nothing is stored."""
    from foundry.cli import render
    from foundry.cli.specfile import read_spec

    with service() as foundry:
        found = foundry.jobs.estimate(read_spec(spec))
    if as_json:
        render.print_json(found)
        return
    rows = [
        {
            "target": target.target,
            "shape": target.shape.in_words,
            "parameters": render.number(target.parameters),
            "kept": f"{target.parameters_ratio:.0%}",
            "of budget": f"{target.budget_ratio:.1%}",
            **{form.format: render.size(form.bytes) for form in target.formats},
        }
        for target in found.targets
    ]
    render.show_rows(rows, as_json=False)
    run = found.run
    free = f", {render.size(run.disk_free_bytes)} free" if run.disk_free_bytes is not None else ""
    time = "unknown until a job has succeeded here"
    if run.duration_s is not None and run.measured is not None:
        time = f"about {run.duration_s / 3600:.2g} h, from {run.measured.jobs} jobs"
    render.show_pairs(
        {
            "memory": f"at least {render.size(run.memory_bytes)}",
            "disk": f"at least {render.size(run.disk_bytes)}{free}",
            "time": time,
            "cost": "" if run.cost is None else f"about {run.cost:,.2f} {run.currency}",
        }
    )
    if run.disk_suffices is False:
        render.say("the service's disk does not suffice for this job", style="bold red")


def pause(job: JobId, as_json: AsJson = False) -> None:
    """Let a job write a checkpoint and wait."""
    from foundry.cli import render

    with service() as foundry:
        render.show_status(foundry.jobs.pause(job), as_json)


def resume(job: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again."""
    from foundry.cli import render

    with service() as foundry:
        render.show_status(foundry.jobs.resume(job), as_json)


def retry(job: JobId, as_json: AsJson = False) -> None:
    """Submit a failed or cancelled job anew; prints the id of the new one."""
    from foundry.cli import render

    with service() as foundry:
        made = foundry.jobs.retry(job)
    render.show_id(made, as_json)


def clone(
    job: JobId,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the spec, such as distill.tokens=40e6."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job like this one, with changes; prints the id of the new one."""
    from foundry.cli import render

    changes = _changes(set_ or [])
    with service() as foundry:
        made = foundry.jobs.clone(job, changes)
    render.show_id(made, as_json)


def logs(job: JobId, level: Level = "info", as_json: AsJson = False) -> None:
    """Print what a job said in words."""
    from foundry.cli import render

    if level not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter(f"--level is {level!r}; give debug, info, warning or error")
    with service() as foundry:
        for event in foundry.jobs.logs(job, level=level):  # type: ignore[arg-type]
            if as_json:
                print(event.model_dump_json())
            else:
                render.print_event(event)


def metrics(
    job: JobId,
    as_json: Annotated[
        bool, typer.Option("--json/--table", help="One JSON object a line, or a table for people.")
    ] = True,
) -> None:
    """Print every figure that a job reported."""
    from foundry.cli import render

    with service() as foundry:
        if as_json:
            for figures in foundry.jobs.metrics(job):
                print(figures.model_dump_json(exclude_none=True))
            return
        found = list(foundry.jobs.metrics(job))
    names = list(dict.fromkeys(name for figures in found for name in figures.values))
    rows = [
        {"stage": f.stage, "step": f.step, **{name: _short(f.values.get(name)) for name in names}} for f in found
    ]  # fmt: skip
    render.show_rows(rows, as_json=False, empty=f"{job} has reported no figure yet")


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _changes(words: list[str]) -> dict[str, object]:
    """`distill.tokens=40e6` as {"distill": {"tokens": 40e6}}; values are read as YAML, an empty one is the default."""
    import yaml

    changes: dict[str, object] = {}
    for word in words:
        place, equals, text = word.partition("=")
        if not equals or not place:
            raise typer.BadParameter(f"--set {word!r}: write FIELD=VALUE, such as distill.tokens=40e6")
        *parents, last = place.split(".")
        inner: dict[str, object] = changes
        for name in parents:
            deeper = inner.setdefault(name, {})
            if not isinstance(deeper, dict):
                raise typer.BadParameter(f"--set {word!r}: {name} is given a value of its own, too")
            inner = deeper
        inner[last] = yaml.safe_load(text) if text else None
    return changes
