"""From an offer to a service that answers, and to its end."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from foundry.serve.offer import Offer
from foundry.serve.options import Options

_HERE = ("127.0.0.1", "::1", "localhost")
_LOOK_S = 0.1


class Server(Protocol):
    """What answers requests, from its construction to the end of the process."""

    def busy(self) -> bool: ...

    def close(self) -> None:
        """Leave nothing behind on the disk; the process ends right after."""


def start(offer: Offer, options: Options) -> Server:
    """Load the model and listen. Raises `MissingExtra` and `ServeFailed`."""
    if offer.runtime == "transformers":
        from foundry.serve.huggingface import TransformersServer

        return TransformersServer(offer.model, offer.name, options, offer.adapter)
    from foundry.serve.llamacpp import LlamaServer

    return LlamaServer(offer.model, offer.name, options, offer.adapter)


def cautions(offer: Offer, options: Options) -> list[str]:
    """What whoever starts a service should know of it."""
    found = []
    if offer.signed_by is None:
        found.append("the variant carries no signature: its files fit its manifest, but anyone could have written both")
    if not offer.manifest.fits_budget:
        found.append(f"the variant is over the budget of its target {offer.manifest.target}")
    if options.api_key is None and options.host not in _HERE:
        found.append(f"everyone who reaches {options.host} may use it; set FOUNDRY_SERVE_KEY to ask for a key")
    return found


def serve(offer: Offer, options: Options, *, drain_s: float, ready: Callable[[], None]) -> None:
    """Answer until SIGINT or SIGTERM, then let requests in work end for at most `drain_s`; a second signal cuts them.

    Ends the process, and the server with it: taken down in order, llama.cpp waits half a minute for open streams.
    """
    with _asked_to_stop() as stop:
        server = start(offer, options)
        ready()
        stop.wait()
        stop.clear()
        deadline = time.monotonic() + drain_s
        while server.busy() and time.monotonic() < deadline and not stop.wait(_LOOK_S):
            pass
        server.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
