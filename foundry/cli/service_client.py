"""What the commands that talk to a service share: a client, and options that are the same everywhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foundry.client.client import Foundry

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Limit = Annotated[int, typer.Option(min=1, help="How many, newest first.")]


@contextmanager
def service() -> Iterator["Foundry"]:
    """The service that this user means; see foundry/client/home.py."""
    from foundry.client.client import Foundry

    with Foundry() as foundry:
        yield foundry
