"""How a variant is served, whatever serves it."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line settles."""

    host: str
    port: int
    api_key: str | None
    """Every request but /health must carry it; None lets everyone in."""
    context_tokens: int
    """Of one request: prompt and answer together."""
    parallel: int
    """Requests that are answered at once; each has a cache of its own."""
    threads: int
    """Of computation."""


def free_threads() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
