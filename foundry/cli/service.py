"""`foundry up`: the API and a worker on this machine, from nothing to ready."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from foundry.errors import MissingExtra


def up(
    home: Annotated[
        Path | None, typer.Option(help="Folder of database, artifacts, key and logs.", show_default="~/.foundry")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API; 0 takes any free one.", show_default="8321")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    teachers: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A folder that jobs may take teachers from, besides this one. Can be given several times.",
        ),
    ] = None,
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Whether to start a worker, too.")] = True,
    foreground: Annotated[bool, typer.Option("--foreground", help="Show the logs here instead of in files.")] = False,
) -> None:
    """Start the service on this machine: API, worker, database, and on the first start a key."""
    for module in ("gunicorn", "flask", "sqlalchemy", "pydantic_settings"):
        if find_spec(module) is None:
            raise MissingExtra(module, "server")
    from foundry.cli import hosting

    given = {"FOUNDRY_HOME": home, "FOUNDRY_HOST": host, "FOUNDRY_PORT": port or None}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    roots = [
        os.environ.get("FOUNDRY_TEACHER_ROOTS", ""),
        str(Path.cwd()),
        *(str(root.absolute()) for root in teachers or ()),
    ]
    os.environ["FOUNDRY_TEACHER_ROOTS"] = os.pathsep.join(filter(None, roots))
    hosting.host(any_port=port == 0, worker=worker, foreground=foreground)
