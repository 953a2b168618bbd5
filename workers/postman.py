"""Sends what waits in the outbox: signed as the Standard Webhooks say, to public addresses, without redirects.

The address is judged at the connection itself, on the very IP address that is connected to: what a name stands for can
have changed since anybody looked (DNS rebinding). TLS still checks the name.
"""

import hmac
import json
import ssl
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

import httpcore2
import structlog

from foundry.errors import OperatorError, UnsafeAddress
from foundry.intake.addresses import Resolve, public_addresses, require_public, resolve
from foundry.store.outbox import Message, Outbox, Outcome
from foundry.store.settings import Settings

_log = structlog.get_logger()
_LOOK_S = 2.0
_SILENCE_S = 10.0
_ANSWER_BYTES = 64 * 1024
"""More of an answer is not read: only its status counts."""
_ERROR_CHARACTERS = 500
_NETWORK_ERRORS = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError)


class Postman:
    """Looks into the outbox again and again, in a thread of its own. Every worker may run one."""

    def __init__(self, settings: Settings, outbox: Outbox, *, lookup: Resolve = resolve) -> None:
        self._outbox = outbox
        self._private = settings.webhooks_private
        backend = PublicOnly(private=settings.webhooks_private, lookup=lookup)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl.create_default_context(), max_connections=4, keepalive_expiry=30, network_backend=backend
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._go, name="postman", daemon=True)

    def start(self) -> None:
        """Look at once, and then again and again."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a message that is on its way is tried again by another."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_SILENCE_S)
        self._pool.close()

    def once(self) -> int:
        """Send what is due and return how many that were; raise `OperatorError` when the database is away."""
        messages = self._outbox.take()
        for message in messages:
            outcome = self._try(message)
            self._outbox.settle(message, outcome)
            _log.info("webhook", delivery=message.id, delivered=outcome.delivered, status=outcome.response_status)
        return len(messages)

    def _go(self) -> None:
        while not self._closing.is_set():
            sent = 0
            try:
                sent = self.once()
            except OperatorError as error:
                _log.warning("the outbox does not answer; looking again later", error=error.message)
            except Exception:
                _log.exception("this look into the outbox failed; looking again later")
            if not sent:
                self._closing.wait(_LOOK_S)

    def _try(self, message: Message) -> Outcome:
        body = json.dumps(message.payload, separators=(",", ":")).encode()
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), _SILENCE_S)
        try:
            require_public(message.url, private=self._private)  # the operator may have become stricter
            headers = signed_headers(message.id, message.secret, body, int(time.time()))
            with self._pool.stream(
                "POST", message.url, headers=headers, content=body, extensions={"timeout": timeouts}
            ) as response:
                status = response.status
                _read_a_little(response.iter_stream())
        except (UnsafeAddress, OSError, ValueError, *_NETWORK_ERRORS) as error:
            return Outcome(delivered=False, error=f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS])
        if 200 <= status < 300:
            return Outcome(delivered=True, response_status=status)
        return Outcome(delivered=False, response_status=status, error=f"it answered {status}", gone=status == 410)


class PublicOnly(httpcore2.NetworkBackend):
    """Connects to public addresses only, and to the one that was judged."""

    def __init__(self, *, private: bool, lookup: Resolve) -> None:
        self._inner = httpcore2.SyncBackend()
        self._private = private
        self._lookup = lookup

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:  # fmt: skip
        try:
            addresses = public_addresses(host, port, private=self._private, lookup=self._lookup)
        except (UnsafeAddress, OSError) as error:
            raise httpcore2.ConnectError(str(error)) from error
        failed: httpcore2.ConnectError | None = None
        for address in addresses:
            try:
                return self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError as error:
                failed = error
        raise failed or httpcore2.ConnectError(f"{host} has no address")


def signed_headers(message_id: str, secret: str, body: bytes, now: int) -> list[tuple[bytes | str, bytes | str]]:
    """Headers of one try; the signature covers id, time and body (standardwebhooks.com, HMAC-SHA256, version v1)."""
    key = b64decode(secret.removeprefix("whsec_"))
    signature = hmac.digest(key, f"{message_id}.{now}.".encode() + body, "sha256")
    return [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("user-agent", "foundry-webhooks"),
        ("webhook-id", message_id),
        ("webhook-timestamp", str(now)),
        ("webhook-signature", f"v1,{b64encode(signature).decode()}"),
    ]


def _read_a_little(chunks: Iterable[bytes]) -> None:
    """So that the connection can be used again; an endless answer is cut by closing it."""
    left = _ANSWER_BYTES
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            return
