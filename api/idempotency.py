"""`Idempotency-Key`: however often a request is sent, it makes one thing."""

from hashlib import sha256
from typing import Annotated

from flask import request
from pydantic import Field

from api.records import Input
from foundry.store.records import Idempotency


class CreateHeaders(Input):
    """What every request that creates something may carry."""

    idempotency_key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,255}$")] | None = None
    """Any word that the caller does not use for another request; the same word with another request is refused."""


def idempotency(headers: CreateHeaders, *body: str) -> Idempotency | None:
    """What the store compares: key, route, and a digest over everything that makes the request what it is."""
    if headers.idempotency_key is None:
        return None
    digest = sha256("\0".join(body).encode("utf-8", "surrogatepass")).hexdigest()
    return Idempotency(key=headers.idempotency_key, route=f"{request.method} {request.path}", body_sha256=digest)
