"""The commands that work without a service: targets, plan, run; evaluate and report, which also work with one."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def targets(as_json: AsJson = False) -> None:
    """List the devices that a spec can name."""
    from foundry.cli import render, tables
    from foundry.spec.device import device_profiles

    profiles = list(device_profiles().values())
    if as_json:
        render.print_json(profiles)
    else:
        render.out().print(tables.targets_table(profiles))


def plan(
    teacher: Annotated[Path, typer.Option(help="A model's folder, or its config.json alone.")],
    target: Annotated[str | None, typer.Option(help="A device, see `foundry targets`.")] = None,
    max_params: Annotated[str | None, typer.Option(metavar="N", help="A limit in parameters, such as 500e6.")] = None,
    max_bytes: Annotated[str | None, typer.Option(metavar="N", help="A limit in bytes, weights and KV cache.")] = None,
    format: Annotated[str, typer.Option(help="The format that runs on the device, without --target.")] = "gguf:q4_k_m",
    context_tokens: Annotated[int, typer.Option(min=1, help="Length of the KV cache, without --target.")] = 2048,
    axes: Annotated[str | None, typer.Option(metavar="A,B", help="Cut these axes alone, such as ffn,hidden.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rank by cutting --top shapes and measuring them on this.")] = None,
    adapter_rank: Annotated[
        int, typer.Option(min=0, help="Leave room for an attached LoRA adapter of this rank; 0 is none.")
    ] = 0,
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
    made = planning.make_plan(teacher, wanted, format, top, allowed, measure, adapter_rank)
    if as_json:
        render.print_json(made)
    else:
        planning.show(made)


def run(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder; started again, it goes on there.")],
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU when there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a spec here and now, without a service."""
    from foundry.cli import render, running, tables
    from foundry.cli.specfile import read_spec

    manifests = running.run_here(read_spec(spec), output, device)
    if as_json:
        render.print_json({manifest.target: str(folder) for folder, manifest in manifests})
        return
    render.out().print(tables.metrics_table([manifest for _, manifest in manifests]))
    for folder, _ in manifests:
        print(folder)


Scored = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model's or a variant's folder, or ORG/NAME; or the id of a variant or model of the service "
        "(var_..., mdl_...), which then does the work.",
    ),
]
Format = Annotated[str | None, typer.Option(help="Of a variant: a GGUF such as gguf:q4_k_m, not the safetensors.")]
Suite = Annotated[
    str | None,
    typer.Option(help="minitron (the nine published benchmarks) or quick (four of them).", show_default="quick"),
]
Tasks = Annotated[str | None, typer.Option(metavar="A,B", help="These tasks alone, by the harness's names.")]
TaskFolder = Annotated[Path | None, typer.Option(help="Your own tasks: the harness's YAML files.")]
DataDir = Annotated[Path | None, typer.Option(help="Local copies of the benchmarks instead of the hub.")]
Examples = Annotated[int | None, typer.Option(min=1, help="Examples of each task (of each subject in MMLU).")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run code that the model writes, confined.")]
HeldOut = Annotated[
    str | None, typer.Option(metavar="FILE|DATASET", help="Measure on the held-out side of this instead of a suite.")
]
Compared = Annotated[str | None, typer.Option(help="With --data: how close the model is to this one.")]
Tokens = Annotated[int, typer.Option(min=1, help="With --data: how much of it is read.")]
Results = Annotated[
    Path | None, typer.Option("--output", "-o", help="Results of a suite; started again, it goes on there.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU when there is one.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="On the service: stay until the evaluation has ended.")]


def evaluate(
    model: Scored, format: Format = None, suite: Suite = None, tasks: Tasks = None, task_folder: TaskFolder = None,
    data_dir: DataDir = None, limit: Examples = None, allow_code: AllowCode = False, data: HeldOut = None,
    teacher: Compared = None, tokens: Tokens = 65_536, output: Results = None, device: Device = None,
    watch: Watch = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Score a model or a variant: in benchmarks, beside published models, or on your own held-out text."""
    from foundry.cli import evaluating, evaluations, render

    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else ()
    if evaluations.is_of_the_service(model):
        operators = {"--task-folder": task_folder, "--data-dir": data_dir, "--output": output, "--device": device}
        evaluations.require_unset(operators | {"--allow-code": allow_code or None})
        asked = {"model": model, "format": format, "suite": suite, "tasks": names or None, "limit": limit, "data": data}
        evaluations.submit(asked | {"teacher": teacher, "tokens": tokens if data else None}, watch, as_json)
    elif data is not None:
        rows = evaluating.measure_here(model, Path(data), teacher, tokens, device)
        render.show_table(rows, as_json, evaluating.domain_table, "nothing was measured")
    else:
        result = evaluating.evaluate_here(
            model, suite or "quick", names, task_folder, data_dir, limit, allow_code, output, device, format
        )
        if as_json:
            render.print_json(result)
        else:
            evaluating.show(result)


def report(
    source: Annotated[
        str, typer.Argument(metavar="JOB|FOLDER", help="A job of the service, or the folder of a `foundry run`.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write; by default FOLDER/report, or a folder named by the job."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the report of a job, or make that of a run again: one HTML page, Markdown and JSON."""
    from foundry.cli import render, reporting

    if source.startswith("job_") and not Path(source).is_dir():
        written = reporting.fetch(source, output or Path(f"{source}-report"))
    else:
        written = reporting.report_on(Path(source), output)
    if as_json:
        render.print_json({path.name: str(path) for path in written})
    else:
        for path in written:
            print(path)
