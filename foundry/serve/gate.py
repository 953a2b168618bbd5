"""What stands in front of `transformers serve`: four addresses and a key, one model, its context, and counters.

transformers' own server has no keys and no metrics, and addresses that load other models or forget this one. It is an
ASGI application, and so is this, around it.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_ASKED = ("/v1/completions", "/v1/chat/completions")
_OPEN = {"GET": ("/health", "/v1/models", "/metrics"), "POST": _ASKED}
_LARGEST_BODY = 32 * 2**20


class Refused(Exception):
    """A request that does not reach the model: status and what is wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Gate:
    """One model behind four addresses."""

    def __init__(
        self, inner: Application, *, name: str, api_key: str | None, context_tokens: int,
        count_tokens: Callable[[dict[str, Any]], int],
    ) -> None:  # fmt: skip
        """`count_tokens` says how long the prompt of a request's body is."""
        self._inner, self._name, self._key = inner, name, api_key
        self._context_tokens, self._count_tokens = context_tokens, count_tokens
        self.in_work = 0
        self._registry = CollectorRegistry()
        self._requests = Counter("foundry_serve_requests", "Answered", ["path", "status"], registry=self._registry)
        self._prompt = Counter("foundry_serve_prompt_tokens", "Of requests that were taken", registry=self._registry)
        processing = Gauge("foundry_serve_requests_processing", "In work now", registry=self._registry)
        processing.set_function(lambda: self.in_work)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path = str(scope["path"])
        try:
            self._check(scope, path)
            if path == "/metrics":
                await _answer(send, 200, generate_latest(self._registry), "text/plain; version=0.0.4")
                return
            if path in _ASKED:
                receive = _replaying(await self._body(receive, path), receive)
        except Refused as refused:
            self._requests.labels(path if path in _ASKED else "other", refused.status).inc()
            error = {"message": refused.message, "type": "invalid_request_error", "code": refused.status}
            await _answer(send, refused.status, json.dumps({"error": error}).encode(), "application/json")
            return
        await self._pass_on(scope, receive, send, path)

    async def _pass_on(self, scope: Message, receive: Receive, send: Send, path: str) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(path, message["status"]).inc()
            await send(message)

        self.in_work += path in _ASKED
        try:
            await self._inner(scope, receive, counting)
        finally:
            self.in_work -= path in _ASKED

    def _check(self, scope: Message, path: str) -> None:
        if path not in _OPEN.get(str(scope["method"]), ()):
            raise Refused(404, f"there is no {scope['method']} {path} here")
        given = dict(scope["headers"]).get(b"authorization", b"").decode(errors="replace")
        if path != "/health" and self._key and not hmac.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
            raise Refused(401, "the key is missing or wrong")

    async def _body(self, receive: Receive, path: str) -> bytes:
        """The request with this model's name and as many tokens as the context has room for."""
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if len(raw) > _LARGEST_BODY:
                raise Refused(413, f"a request has at most {_LARGEST_BODY:,} bytes")
            if not message.get("more_body"):
                break
        try:
            asked = json.loads(raw)
        except ValueError as error:
            raise Refused(400, f"the body is not JSON: {error}") from error
        if not isinstance(asked, dict):
            raise Refused(400, "the body is not a JSON object")
        return json.dumps(self._fitted(asked, path)).encode()

    def _fitted(self, asked: dict[str, Any], path: str) -> dict[str, Any]:
        limit = "max_tokens"
        if path.endswith("chat/completions") and asked.get("max_completion_tokens") is not None:
            limit = "max_completion_tokens"
        wanted = asked.get(limit)
        if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1):
            raise Refused(400, f"{limit} is {wanted!r}, not a positive whole number")
        prompt = self._count_tokens(asked)
        room = self._context_tokens - prompt
        if room < 1:
            raise Refused(
                400,
                f"the prompt of {prompt:,} tokens exceeds the available context size ({self._context_tokens:,} tokens)",
            )
        self._prompt.inc(prompt)
        for key in ("stream_options", "generation_config"):
            # A stream ends with its usage without being asked; the other is not of OpenAI and could set anything.
            asked.pop(key, None)
        return asked | {"model": self._name, limit: min(room, wanted or room)}


def _replaying(body: bytes, connection: Receive) -> Receive:
    """A receive that gives a body that has been read, and then listens for the end of the connection."""
    waiting = [body]

    async def receive() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await connection()

    return receive


async def _answer(send: Send, status: int, body: bytes, kind: str) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
