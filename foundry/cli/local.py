"""The commands that need no service: targets, plan, run."""

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
    top: Annotated[int, typer.Option(min=1, help="How many shapes to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show which shapes of a teacher fit a budget, by arithmetic alone."""
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
    made = planning.make_plan(teacher, wanted, format, top, allowed)
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
