"""How many answers may stay open at once in one process, and when they must end."""

import threading
from collections.abc import Callable

from werkzeug.exceptions import ServiceUnavailable

STREAMS = 240
"""Open answers in one process. The same number of threads in gunicorn_conf.py waits in them."""
RETRY_AFTER_S = 5


class Streams:
    """Slots for open answers; safe to share between threads."""

    def __init__(self, limit: int = STREAMS) -> None:
        self.limit = limit
        self._free = threading.BoundedSemaphore(limit)
        self._stopping: Callable[[], bool] = lambda: False

    def take(self) -> Callable[[], None]:
        """Take a slot and get the function that gives it back; raise 503 with Retry-After when none is free."""
        if not self._free.acquire(blocking=False):
            raise ServiceUnavailable(
                f"all {self.limit} streams of this server are in use; try again later, or read events without wait",
                retry_after=RETRY_AFTER_S,
            )
        return _Once(self._free.release)

    @property
    def open(self) -> int:
        """How many slots are taken."""
        return self.limit - self._free._value

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Tell streams how to learn that the server wants to stop."""
        self._stopping = stopping

    @property
    def stopping(self) -> bool:
        """Whether open answers should end now; the reader connects again elsewhere."""
        return self._stopping()


class _Once:
    """Calls a function the first time only: an answer may be closed by its reader and by the server."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._done = False

    def __call__(self) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
        self._function()
