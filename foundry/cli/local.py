"""The commands that need no service: targets, plan, run, evaluate, report."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def targets(as_json: AsJson = False) -> None:
    """List the devices that a spec can name."""
    from foundry.cli import render
    from foundry.spec.device import device_profiles

    profiles = list(device_profiles().values())
    if as_json:
        render.print_json(profiles)
    else:
        render.out().print(render.targets_table(profiles))


def plan(
    teacher: Annotated[Path, typer.Option(help="A model's folder, or its config.json alone.")],
    target: Annotated[str | None, typer.Option(help="A device, see `foundry targets`.")] = None,
    max_params: Annotated[str | None, typer.Option(metavar="N", help="A limit in parameters, such as 500e6.")] = None,
    max_bytes: Annotated[str | None, typer.Option(metavar="N", help="A limit in bytes, weights and KV cache.")] = None,
    format: Annotated[str, typer.Option(help="The format that runs on the device, without --target.")] = "gguf:q4_k_m",
    context_tokens: Annotated[int, typer.Option(min=1, help="Length of the KV cache, without --target.")] = 2048,
    axes: Annotated[str | None, typer.Option(metavar="A,B", help="Cut these axes alone, such as ffn,hidden.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rank by cutting --top shapes and measuring them on this.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many shapes to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show which shapes of a teacher fit a budget: by arithmetic alone, or measured on its weights and your data."""
    from foundry.cli import planning, render

    limits = {"--target": target, "--max-params": max_params, "--max-bytes": max_bytes}
    given = [name for name, value in limits.items() if value is not None]
    if len(given) != 1:
        raise typer.BadParameter(f"give exactly one of {', '.join(limits)} (got {', '.join(given) or 'none'})")
    try:
        allowed = planning.parse_axes(axes)
    except ValueError as error:
        raise typer.BadParameter(f"--axes: {error}") from None
    wanted = target or planning.custom_target(max_params, max_bytes, format, context_tokens)
    measure = None
    if data is not None:
        from foundry.cli.ranking import ranking_on

        measure = ranking_on(teacher, data, allowed, top)
    made = planning.make_plan(teacher, wanted, format, top, allowed, measure)
    if as_json:
        render.print_json(made)
    else:
        planning.show(made)


def run(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder; started again, it goes on there.")],
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU when there is one.")] = None,
) -> None:
    """Carry out a spec here and now, without a service."""
    from foundry.cli import render, running
    from foundry.cli.specfile import read_spec

    manifests = running.run_here(read_spec(spec), output, device)
    render.out().print(render.metrics_table([manifest for _, manifest in manifests]))
    for folder, _ in manifests:
        print(folder)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's or a variant's folder, or ORG/NAME.")],
    suite: Annotated[
        str, typer.Option(help="minitron (the nine published benchmarks) or quick (four of them).")
    ] = "quick",
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="These tasks alone, by the harness's names.")] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Your own tasks: the harness's YAML files.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Local copies of the benchmarks instead of the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task (of each subject in MMLU).")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run code that the model writes, confined.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Measure on the held-out side of this file instead of a suite.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="With --data: how close the model is to this one.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="With --data: how much of it is read.")] = 65_536,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results of a suite; started again, it goes on there.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU when there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model or a variant: in benchmarks, beside published models, or on your own held-out text."""
    from foundry.cli import evaluating, render

    if data is not None:
        rows = evaluating.measure_here(model, data, teacher, tokens, device)
        if as_json:
            render.print_json(rows)
        else:
            render.out().print(evaluating.domain_table(rows))
        return
    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else ()
    result = evaluating.evaluate_here(model, suite, names, task_folder, data_dir, limit, allow_code, output, device)
    if as_json:
        render.print_json(result)
    else:
        evaluating.show(result)


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a `foundry run`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; by default FOLDER/report.")
    ] = None,
) -> None:
    """Make the report of a run again: one HTML page, Markdown and JSON."""
    from foundry.cli import reporting

    for path in reporting.report_on(folder, output):
        print(path)
