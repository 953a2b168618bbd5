"""What most verbs do: ask for one thing and read it as one record."""

from typing import Any, TypeVar
from uuid import uuid4

from pydantic import BaseModel

from foundry.client.exchange import Exchange, below
from foundry.client.flow import Flow

M = TypeVar("M", bound=BaseModel)


def get(exchange: Exchange, kind: type[M], path: str, *names: str, **query: Any) -> Flow[M]:
    """Read one object."""
    params = {name: value for name, value in query.items() if value is not None}
    response = yield from exchange.call("GET", below(path, *names), params=params)
    return exchange.read(kind, response)


def create(
    exchange: Exchange, kind: type[M], path: str, body: Any = None, idempotency_key: str | None = None
) -> Flow[M]:
    """Make one object; one idempotency key covers all tries of the call."""
    headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
    response = yield from exchange.call("POST", path, json=body, headers=headers)
    return exchange.read(kind, response)


def change(exchange: Exchange, kind: type[M], method: str, path: str, body: Any = None) -> Flow[M]:
    """Change one object: PUT, PATCH, or a POST that is an order."""
    response = yield from exchange.call(method, path, json=body)
    return exchange.read(kind, response)


def delete(exchange: Exchange, path: str) -> Flow[None]:
    """Delete one object."""
    yield from exchange.call("DELETE", path)
