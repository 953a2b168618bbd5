"""Where the SDK finds a service when it is not told: the environment, then the folder that `foundry up` writes.

FOUNDRY_URL, FOUNDRY_KEY          first
~/.foundry/{url,key}              second; FOUNDRY_HOME names another folder
"""

import os
from pathlib import Path
from typing import NamedTuple

from foundry.errors import ServiceUnreachable, Unauthorized


class Address(NamedTuple):
    """A service and the key to it."""

    url: str
    key: str


def home_folder() -> Path:
    """The folder of this user's own service."""
    return Path(os.environ.get("FOUNDRY_HOME") or "~/.foundry").expanduser()


def find_service(url: str | None = None, key: str | None = None) -> Address:
    """Fill in what was not given.

    The key in the home folder opens the service in the home folder: it is never sent to an address that came from
    elsewhere. Raises `ServiceUnreachable` when no address is known and `Unauthorized` when no key is.
    """
    home = home_folder()
    home_url, home_key = _line(home / "url"), _line(home / "key")
    url = url or os.environ.get("FOUNDRY_URL") or home_url
    if not url:
        raise ServiceUnreachable(
            f"no service is known: start one with `foundry up`, or set FOUNDRY_URL and FOUNDRY_KEY (looked in {home})"
        )
    url = url.rstrip("/")
    key = key or os.environ.get("FOUNDRY_KEY") or (home_key if url == (home_url or "").rstrip("/") else None)
    if not key:
        raise Unauthorized(f"no key is known for {url}: set FOUNDRY_KEY or pass Foundry(url, key)")
    if not key.isascii() or not key.isprintable():
        raise Unauthorized("the key holds characters that no key has; copy it again, it begins with fdy_")
    return Address(url, key)


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise Unauthorized(f"{path} cannot be read by this user; set FOUNDRY_URL and FOUNDRY_KEY instead") from error
