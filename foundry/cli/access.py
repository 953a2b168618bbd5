"""The commands about who may do what: the groups members and projects, and what was done: audit."""

from typing import Annotated

import typer

from foundry.cli.service_client import AsJson, Limit, service

members = typer.Typer(no_args_is_help=True, help="People and services with keys of their own.")
projects = typer.Typer(no_args_is_help=True, help="Tenants; all but looking at one's own is for operators.")
MemberId = Annotated[str, typer.Argument(metavar="MEMBER", help="A member's id.")]
Role = Annotated[str, typer.Argument(metavar="ROLE", help="viewer, editor or admin.")]
Most = Annotated[str | None, typer.Option(metavar="N|none", help="Left out, it stays as it is; none is no limit.")]


@members.command("list")
def list_members(limit: Limit = 100, as_json: AsJson = False) -> None:
    """List members and their roles."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.members.list(limit=limit))
    empty = "no members yet; add one with: foundry members add NAME ROLE"
    render.show_records(found, as_json, "id", "name", "role", "created_at", empty=empty)


@members.command("add")
def add_member(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An address or a handle.")], role: Role,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Add a member. Prints their id; make their key with: foundry keys create NAME --member MEMBER."""
    from foundry.cli import render

    with service() as foundry:
        render.show_id(foundry.members.create(name, role), as_json)


@members.command("role")
def set_role(member: MemberId, role: Role, as_json: AsJson = False) -> None:
    """Give a member another role; their keys follow at once."""
    from foundry.cli import render

    with service() as foundry:
        render.show_record(foundry.members.set_role(member, role), as_json)


@members.command("remove")
def remove_member(member: MemberId, as_json: AsJson = False) -> None:
    """Take a member out and revoke all their keys."""
    from foundry.cli import render

    with service() as foundry:
        foundry.members.remove(member)
    render.show_done(as_json, "removed", member)


@projects.command("list")
def list_projects(limit: Limit = 100, as_json: AsJson = False) -> None:
    """List projects and what they may use: all of them for an operator, else one's own."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.projects.list(limit=limit))
    if as_json:
        render.print_json(found)
        return
    rows = [
        {"id": p.id, "name": p.name, **{name: _allowed(most) for name, most in p.quota}, "created_at": p.created_at}
        for p in found
    ]
    render.show_rows(rows, as_json=False)


@projects.command("create")
def create_project(name: Annotated[str, typer.Argument(metavar="NAME")], as_json: AsJson = False) -> None:
    """Make a tenant without limits and print its first key, this once."""
    from foundry.cli import render

    with service() as foundry:
        made = foundry.projects.create(name)
    if as_json:
        render.print_json(made)
    else:
        print(made.admin_key.key)
        render.say(f"the key of {made.project.id}, which may do all in it; it is not shown again", style="yellow")


@projects.command("quota")
def set_quota(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="A project's id.")],
    active_jobs: Most = None, running_jobs: Most = None, stored_bytes: Most = None, run_seconds_per_month: Most = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Set what a project may use."""
    from foundry.cli import render
    from foundry.spec.access import Quota

    given = {
        "active_jobs": active_jobs, "running_jobs": running_jobs, "stored_bytes": stored_bytes,
        "run_seconds_per_month": run_seconds_per_month,
    }  # fmt: skip
    limits = {name: _limit(name, text) for name, text in given.items() if text is not None}
    with service() as foundry:
        changed = foundry.projects.set_quota(project, Quota(**limits))
    if as_json:
        render.print_json(changed)
    else:
        render.show_pairs({name: _allowed(most) for name, most in changed.quota})


def audit(
    about: Annotated[str | None, typer.Option("--object", metavar="ID", help="Only what was done to this.")] = None,
    limit: Limit = 20, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List who wrote what in the project, newest first."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.account.audit(object_id=about, limit=limit))
    shown = ("created_at", "action", "object_id", "key_id", "member_id", "address", "request_id")
    render.show_records(found, as_json, *shown)


def _limit(name: str, text: str) -> int | None:
    if text == "none":
        return None
    try:
        number = float(text)
        if number >= 0 and number.is_integer():
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise typer.BadParameter(
        f"--{name.replace('_', '-')} is {text!r}; give a whole number, such as 10 or 50e9, or none"
    )


def _allowed(most: int | None) -> str:
    return "no limit" if most is None else f"{most:,}"
