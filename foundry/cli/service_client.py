"""What the commands that talk to a service share: a client, and options that are the same everywhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foundry.client.client import Foundry

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Limit = Annotated[int, typer.Option(min=1, help="How many, newest first.")]


_chosen: ContextVar[str | None] = ContextVar("profile", default=None)


def choose(profile: str | None) -> None:
    """Remember what `--profile` said, for this command."""
    _chosen.set(profile)


@contextmanager
def service() -> Iterator["Foundry"]:
    """The service that this user means: `--profile` first, then as foundry/client/home.py says."""
    from foundry.client.client import Foundry

    with Foundry(profile=_chosen.get()) as foundry:
        yield foundry
