"""Where the service may send something that a user asked for: public https addresses, and nothing behind the wall.

A name is judged twice. When it is registered, so that a mistake is seen at once; and at every connection, on the very
address that is connected to, because what a name stands for can change in between (DNS rebinding).
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from foundry.errors import UnsafeAddress

Resolve = Callable[[str, int], Sequence[str]]
"""From host and port to IP addresses; raises `OSError` when there are none."""


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as this machine knows them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def require_public(url: str, *, private: bool = False) -> None:
    """Raise `UnsafeAddress` unless `url` is https without credentials and names no address of a private network.

    A host name is not looked up here. `private` also allows http and private addresses.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UnsafeAddress(f"{url!r:.200} is not an address: {error}", pointer="/url") from error
    schemes = ("https", "http") if private else ("https",)
    if parts.scheme not in schemes or not host:
        raise UnsafeAddress(f"{url!r:.200}: give an address such as https://example.org/hook", pointer="/url")
    if parts.username is not None or parts.fragment or any(c.isspace() or ord(c) < 32 for c in url):
        raise UnsafeAddress("the address may hold no user, fragment or white space", pointer="/url")
    is_local = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    if not private and (is_local or (_as_ip(host) is not None and not is_public(host))):
        raise UnsafeAddress(
            f"{host} is an address of this machine or of a private network; webhooks go to public hosts. An operator "
            "can allow others with FOUNDRY_WEBHOOKS_PRIVATE=1",
            pointer="/url",
        )


def public_addresses(host: str, port: int, *, private: bool = False, lookup: Resolve = resolve) -> Sequence[str]:
    """What to connect to: the addresses of a host, none of them private; raise `UnsafeAddress`, or `OSError`.

    One private address among public ones refuses the host: such an answer is made to deceive.
    """
    found = lookup(host, port)
    if not private and (bad := [address for address in found if not is_public(address)]):
        raise UnsafeAddress(f"{host} stands for {bad[0]}, which is not public")
    return found


def is_public(address: str) -> bool:
    """Whether an IP address is reachable for everybody; also looks into IPv4 that is wrapped in IPv6."""
    ip = _as_ip(address.partition("%")[0])
    if ip is None:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        in_nat64 = ip in ipaddress.ip_network("64:ff9b::/96")
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if in_nat64 else inner
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Also numbers as inet_aton takes them: 2130706433 and 0x7f.1 are this machine."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None
