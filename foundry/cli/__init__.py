"""The `foundry` command: a service, jobs, what a project keeps, and work without a service.

Commands import what they need when they run, so that `foundry --help` is quick and needs no extra installed.
"""

import sys
from typing import Annotated

import typer

from foundry.cli import access, account, evaluations, folders, jobs, library, local, service, service_client, steering

app = typer.Typer(
    name="foundry",
    help="Prune, distil and export language models to the size of a device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PANELS = {
    "A service": (
        service.up, account.login, account.logout, account.profiles, account.whoami, account.usage, access.audit,
    ),
    "Jobs": (
        steering.estimate, jobs.submit, jobs.watch, jobs.jobs, jobs.cancel, steering.pause, steering.resume,
        steering.retry, steering.clone, steering.logs, steering.metrics, jobs.download,
    ),
    "Without a service": (local.targets, local.plan, local.run),
    "With or without one": (local.evaluate, local.report),
    "A variant's folder": (folders.verify, folders.measure, folders.serve),
}  # fmt: skip
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for name, group in {
    "datasets": library.datasets, "models": library.models, "variants": library.variants, "aliases": library.aliases,
    "evaluations": evaluations.evaluations,
    "keys": account.keys, "members": access.members, "projects": access.projects, "webhooks": account.webhooks,
}.items():  # fmt: skip
    app.add_typer(group, name=name, rich_help_panel="What a project has")


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
    profile: Annotated[
        str | None, typer.Option(help="The service to talk to, as kept by `foundry login`; also FOUNDRY_PROFILE.")
    ] = None,
) -> None:
    service_client.choose(profile)


def main() -> None:
    """The exit code: 0 done, 1 it could not be done, 2 it was called wrongly, 3 no service answers, 4 the key is
    missing or may not do this, 130 interrupted."""
    from foundry.cli.render import exit_code, show_error
    from foundry.errors import FoundryError

    try:
        app(prog_name="foundry")
    except (FoundryError, OSError) as error:
        show_error(error)
        sys.exit(exit_code(error))
