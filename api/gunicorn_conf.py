"""Gunicorn's settings. A long-lived answer (SSE, a long poll) holds a thread, so there are more threads than those."""

from typing import Any

from api.state import State
from api.streams import STREAMS
from foundry.store.settings import Settings

_settings = Settings.from_env()
_ORDINARY_THREADS = 16
"""Always free for requests that end at once: `Streams` turns away what would take these."""

bind = f"{_settings.host}:{_settings.port}"
worker_class = "gthread"
threads = STREAMS + _ORDINARY_THREADS
timeout = 60
graceful_timeout = 30
keepalive = 15
accesslog = None  # api/trace.py writes one line for each request, with its id
control_socket_disable = True
proc_name = "foundry-api"


def post_worker_init(worker: Any) -> None:
    """Let open streams end when the worker is told to stop, so that a deploy does not wait for its grace to run out."""
    state: State = worker.wsgi.extensions["foundry"]
    state.streams.stop_when(lambda: not worker.alive)
