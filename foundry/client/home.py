"""Where the SDK finds a service when it is not told.

FOUNDRY_URL, FOUNDRY_KEY                        first
a profile of ~/.config/foundry/config.toml      second: the one asked for, FOUNDRY_PROFILE, or its `default`
~/.foundry/{url,key}                            third, what `foundry up` writes; FOUNDRY_HOME names another folder

FOUNDRY_CONFIG names another file. `foundry login` writes it:

    default = "work"
    [profiles.work]
    url = "https://foundry.example.org"
    key = "fdy_..."
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foundry.errors import ServiceUnreachable, Unauthorized, UserError


class Address(NamedTuple):
    """A service and the key to it."""

    url: str
    key: str


class Config(NamedTuple):
    """The file of profiles."""

    default: str | None
    profiles: Mapping[str, Address]


def home_folder() -> Path:
    """The folder of this user's own service."""
    return Path(os.environ.get("FOUNDRY_HOME") or "~/.foundry").expanduser()


def config_file() -> Path:
    """Where this user's profiles are kept."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return Path(os.environ.get("FOUNDRY_CONFIG") or base / "foundry" / "config.toml").expanduser()


def find_service(url: str | None = None, key: str | None = None, profile: str | None = None) -> Address:
    """Fill in what was not given.

    A key that was kept with an address opens that address alone: it is never sent to one that came from elsewhere.
    Raises `ServiceUnreachable` when no address is known, `Unauthorized` when no key is, `UserError` for an unknown
    profile.
    """
    home = home_folder()
    environment_url = os.environ.get("FOUNDRY_URL") if profile is None else None
    kept = _profile(profile) or Address(_line(home / "url") or "", _line(home / "key") or "")
    url = (url or environment_url or kept.url).rstrip("/")
    if not url:
        raise ServiceUnreachable(
            "no service is known: start one with `foundry up`, keep one with `foundry login URL`, or set FOUNDRY_URL "
            f"and FOUNDRY_KEY (looked in {config_file()} and {home})"
        )
    environment_key = os.environ.get("FOUNDRY_KEY") if profile is None else None
    key = key or environment_key or (kept.key if url == kept.url.rstrip("/") else None)
    if not key:
        raise Unauthorized(f"no key is known for {url}: set FOUNDRY_KEY or pass Foundry(url, key)")
    return Address(url, plain_key(key))


def plain_key(key: str) -> str:
    """The key, when it can be one; raise `Unauthorized`."""
    if not key.isascii() or not key.isprintable():
        raise Unauthorized("the key holds characters that no key has; copy it again, it begins with fdy_")
    return key


def read_config() -> Config:
    """The profiles; none when there is no file. Raises `UserError` for one that cannot be read."""
    path = config_file()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        kept = document.get("profiles", {})
        profiles = {name: Address(str(entry["url"]), str(entry["key"])) for name, entry in kept.items()}
    except (FileNotFoundError, NotADirectoryError):
        return Config(None, {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); mend it or remove it") from error
    default: Any = document.get("default")
    return Config(default if isinstance(default, str) else None, profiles)


def write_config(config: Config) -> Path:
    """Keep the profiles in a file that only this user can read; whole or not at all."""
    path = config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"default = {json.dumps(config.default)}"] if config.default else []
    for name, address in sorted(config.profiles.items()):
        lines.append(f"[profiles.{json.dumps(name)}]")
        lines += [f"{field} = {json.dumps(value)}" for field, value in address._asdict().items()]
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(os.open(aside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    aside.replace(path)
    return path


def _profile(name: str | None) -> Address | None:
    wanted = name or os.environ.get("FOUNDRY_PROFILE")
    config = read_config()
    if wanted is None:
        return config.profiles.get(config.default or "")
    if wanted not in config.profiles:
        known = ", ".join(sorted(config.profiles)) or "none"
        raise UserError(f"there is no profile {wanted!r} in {config_file()}; known: {known}; make it: foundry login")
    return config.profiles[wanted]


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise Unauthorized(f"{path} cannot be read by this user; set FOUNDRY_URL and FOUNDRY_KEY instead") from error
