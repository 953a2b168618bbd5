"""A listening socket, or why there is none: known before anything else is started."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from foundry.errors import OperatorError


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there; 0 takes any free port. Raises `OperatorError` when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OperatorError(
                    f"port {port} on {host} is taken by another program; choose another with --port {port + 1}, "
                    "or any free one with --port 0"
                ) from error
            raise OperatorError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose others with --host and --port"
            ) from error
        yield listener


def url_of(host: str, port: int) -> str:
    """Where a client on this machine reaches what listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
