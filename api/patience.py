"""A sender that dribbles holds a thread for as long as it likes: gunicorn waits for each byte without an end.

A thread beside the request cuts the connection when the next piece has not come in time; the read then ends early.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

_log = structlog.get_logger()


@contextmanager
def patience(connection: socket.socket | None, silence_s: float) -> Iterator[threading.Event]:
    """Cut `connection` unless the event that is yielded is set at least once in every `silence_s`.

    None, as with servers that do not hand their socket out, cuts nothing.
    """
    came = threading.Event()
    over = threading.Event()

    def watch() -> None:
        while came.wait(silence_s):
            came.clear()
            if over.is_set():
                return
        _log.warning("a body came too slowly; the connection is cut", silence_s=silence_s)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    watcher = threading.Thread(target=watch, name="patience", daemon=True)
    if connection is not None:
        watcher.start()
    try:
        yield came
    finally:
        over.set()
        came.set()
