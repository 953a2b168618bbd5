"""The commands about service and key: login, logout, profiles, whoami, usage, and the groups keys and webhooks."""

from typing import Annotated

import typer

from foundry.cli.service_client import AsJson, Limit, service

keys = typer.Typer(no_args_is_help=True, help="API keys of the project.")
webhooks = typer.Typer(no_args_is_help=True, help="Addresses that hear of what happens to jobs.")
Profile = Annotated[str, typer.Option("--name", "-n", help="What to call it.")]


def login(
    url: Annotated[str, typer.Argument(help="The service's address, such as https://foundry.example.org.")],
    name: Profile = "default",
    key: Annotated[
        str | None, typer.Option(help="The API key; asked for when it is not given.", envvar="FOUNDRY_KEY")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep a service and the key to it, after trying them; the newest becomes the default."""
    from foundry.cli import render
    from foundry.client.client import Foundry
    from foundry.client.home import Address, Config, read_config, write_config

    key = (key or typer.prompt("API key", hide_input=True)).strip()
    with Foundry(url, key) as foundry:
        me = foundry.account.whoami()
    before = read_config()
    path = write_config(Config(name, {**before.profiles, name: Address(url.rstrip("/"), key)}))
    if as_json:
        render.print_json({"profile": name, "url": url, "project_id": me.project_id, "kept_in": str(path)})
    else:
        render.say(f"{name} is {url}, project {me.project_id}, key {me.name!r}; kept in {path}", style="green")


def logout(name: Annotated[str, typer.Argument(help="The profile.")] = "default", as_json: AsJson = False) -> None:
    """Forget a profile; the key itself stays good until it is revoked."""
    from foundry.cli import render
    from foundry.client.home import Config, read_config, write_config
    from foundry.errors import UserError

    before = read_config()
    if name not in before.profiles:
        raise UserError(f"there is no profile {name!r}; known are: {', '.join(sorted(before.profiles)) or 'none'}")
    left = {known: address for known, address in before.profiles.items() if known != name}
    write_config(Config(None if before.default == name else before.default, left))
    render.show_done(as_json, "forgotten", name)


def profiles(as_json: AsJson = False) -> None:
    """List the profiles, without their keys."""
    from foundry.cli import render
    from foundry.client.home import read_config

    config = read_config()
    rows = [
        {"name": name, "url": address.url, "default": name == config.default}
        for name, address in sorted(config.profiles.items())
    ]
    render.show_rows(rows, as_json, empty="no profiles; keep one with: foundry login URL")


def whoami(as_json: AsJson = False) -> None:
    """Show which service, project and key are in use, and what the key may do."""
    from foundry.cli import render

    with service() as foundry:
        me = foundry.account.whoami()
        render.show_record(me, as_json, service=foundry.url)


def usage(as_json: AsJson = False) -> None:
    """Show what the project used this month, what it stores, and what it may."""
    from foundry.cli import render

    with service() as foundry:
        used, limits = foundry.account.usage(), foundry.account.limits()
    if as_json:
        render.print_json({"usage": used.model_dump(mode="json"), "limits": limits.model_dump(mode="json")})
        return
    quota = limits.quota
    render.show_rows(
        [
            _use("jobs not ended", str(limits.active_jobs), quota.active_jobs),
            _use("run seconds", f"{used.run_seconds:,.0f}", quota.run_seconds_per_month),
            _use("stored", render.size(used.stored_bytes), quota.stored_bytes and render.size(quota.stored_bytes)),
            _use("  datasets", render.size(used.dataset_bytes), ""),
            _use("  models", render.size(used.model_bytes), ""),
            _use("  variants", render.size(used.variant_bytes), ""),
            _use("requests a minute", "", limits.requests_per_minute),
        ],
        as_json=False,
    )


def _use(what: str, used: str, allowed: object) -> dict[str, object]:
    return {"": what, "used": used, "allowed": "no limit" if allowed is None else allowed}


@keys.command("list")
def list_keys(limit: Limit = 100, as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.keys.list(limit=limit))
    render.show_records(found, as_json, "id", "name", "member_id", "scopes", "last_used_at", "expires_at", "revoked_at")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do, such as jobs:read; by default all that yours may.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="How long it lives.")] = None,
    member: Annotated[str | None, typer.Option(help="Whose it is: it never reaches further than their role.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    from foundry.cli import render

    with service() as foundry:
        lives_s = None if days is None else days * 86400
        issued = foundry.keys.create(name, scopes=scope, lives_s=lives_s, member_id=member)
    if as_json:
        render.print_json(issued)
    else:
        print(issued.key)
        render.say(f"{issued.id} may {', '.join(issued.scopes)}; it is not shown again", style="yellow")


@keys.command("rotate")
def rotate_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key's id.")],
    grace: Annotated[float, typer.Option(help="Seconds that the old key still works.")] = 3600,
    as_json: AsJson = False,
) -> None:
    """Make a key that may do the same and print it; the old one ends after a grace."""
    from foundry.cli import render

    with service() as foundry:
        issued = foundry.keys.rotate(key, grace_s=grace)
    if as_json:
        render.print_json(issued)
    else:
        print(issued.key)


@keys.command("revoke")
def revoke_key(key: Annotated[str, typer.Argument(metavar="KEY", help="A key's id.")], as_json: AsJson = False) -> None:
    """Refuse a key from now on."""
    from foundry.cli import render

    with service() as foundry:
        foundry.keys.revoke(key)
    render.show_done(as_json, "revoked", key)


@webhooks.command("list")
def list_webhooks(limit: Limit = 100, as_json: AsJson = False) -> None:
    """List endpoints."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.webhooks.list(limit=limit))
    render.show_records(found, as_json, "id", "url", "events", "enabled", "disabled_reason")


@webhooks.command("create")
def create_webhook(
    url: Annotated[str, typer.Argument(help="A public https address.")],
    event: Annotated[list[str] | None, typer.Option(help="What it hears of; by default how jobs end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Register an address and print its signing secret, this once."""
    from foundry.cli import render

    with service() as foundry:
        issued = foundry.webhooks.create(url, event)
    if as_json:
        render.print_json(issued)
    else:
        print(issued.secret)
        render.say(f"{issued.id} hears of {', '.join(issued.events)}; the secret is not shown again", style="yellow")


@webhooks.command("deliveries")
def list_deliveries(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT")], limit: Limit = 20, as_json: AsJson = False
) -> None:
    """List messages to an endpoint and how they fared."""
    from foundry.cli import render

    with service() as foundry:
        found = list(foundry.webhooks.deliveries(endpoint, limit=limit))
    render.show_records(found, as_json, "id", "type", "status", "tries", "response_status", "error", "created_at")


@webhooks.command("test")
def test_webhook(endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT")], as_json: AsJson = False) -> None:
    """Send an endpoint a test message."""
    from foundry.cli import render

    with service() as foundry:
        sent = foundry.webhooks.test(endpoint)
    render.show_record(sent, as_json)


@webhooks.command("delete")
def delete_webhook(endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT")], as_json: AsJson = False) -> None:
    """Forget an endpoint."""
    from foundry.cli import render

    with service() as foundry:
        foundry.webhooks.delete(endpoint)
    render.show_done(as_json, "deleted", endpoint)
