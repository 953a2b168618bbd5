"""How often one key may ask. Counted in the broker's Redis when there is one, else in this process."""

import time

import structlog
from flask import Flask, Response, g
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from api.auth import caller
from foundry.errors import RateLimited
from foundry.store.settings import Settings

_log = structlog.get_logger()


def install(app: Flask, settings: Settings) -> None:
    """Count every request that came with a good key; must be installed after the key is known."""
    if settings.requests_per_minute is None:
        return
    allowed = RateLimitItemPerMinute(settings.requests_per_minute)
    limiter = SlidingWindowCounterRateLimiter(_storage(settings.broker_url))

    def count() -> None:
        if "key" not in g:  # an open view, or none
            return
        key_id = caller().id
        try:
            is_within = limiter.hit(allowed, key_id)
            window = limiter.get_window_stats(allowed, key_id)
        except StorageError as error:  # a counter that is away must not take the service with it
            _log.warning("requests are not counted", error=repr(error))
            return
        g.rate = (allowed.amount, max(0, window.remaining), max(1, round(window.reset_time - time.time())))
        if not is_within:
            raise RateLimited(
                f"this key may send {allowed.amount:,} requests a minute; go on in {g.rate[2]} s",
                retry_after_s=g.rate[2],
            )

    app.before_request(count)
    app.after_request(_tell)


def _tell(response: Response) -> Response:
    """The header fields of draft-ietf-httpapi-ratelimit-headers, older spelling: what clients know."""
    if "rate" in g:
        limit, remaining, reset_s = g.rate
        response.headers["RateLimit-Limit"] = str(limit)
        response.headers["RateLimit-Remaining"] = str(remaining)
        response.headers["RateLimit-Reset"] = str(reset_s)
    return response


def _storage(broker_url: str | None) -> Storage:
    if broker_url is not None and broker_url.startswith(("redis://", "rediss://")):
        return storage_from_string(broker_url, wrap_exceptions=True, socket_timeout=1, socket_connect_timeout=1)  # type: ignore[return-value]
    return MemoryStorage()
