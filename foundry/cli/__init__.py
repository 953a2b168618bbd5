"""`foundry up | submit | watch | jobs | cancel | download | targets | plan | run | verify | measure |
serve`.

Commands import what they need when they run, so that `foundry --help` is quick and needs no extra installed.
"""

import sys
from typing import Annotated

import typer

from foundry.cli import folders, jobs, local, service

app = typer.Typer(
    name="foundry",
    help="Prune, distil and export language models to the size of a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    service.up, jobs.submit, jobs.watch, jobs.jobs, jobs.cancel, jobs.download, local.targets, local.plan, local.run,
    folders.verify, folders.measure, folders.serve,
):  # fmt: skip
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        import foundry

        print(f"foundry {foundry.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `foundry` command: 0 done, 1 it could not be done, 2 it was called wrongly, 130 interrupted."""
    from foundry.cli.render import show_error
    from foundry.errors import FoundryError

    try:
        app()
    except (FoundryError, OSError) as error:
        show_error(error)
        sys.exit(1)
