"""Lists that come in pages, read as one."""

from collections.abc import Iterator
from typing import Any, TypeVar

from foundry.client.transport import Transport
from foundry.spec.resources import Page, Resource

R = TypeVar("R", bound=Resource)
PAGE_LIMIT = 100


def every(transport: Transport, path: str, kind: type[R], *, limit: int | None = None, **filters: Any) -> Iterator[R]:
    """Every item of a list, or the first `limit`; the next page is fetched when the reader gets there.

    `filters` go into the query; those that are None are left out.
    """
    query = {name: value for name, value in filters.items() if value is not None}
    given = 0
    while limit is None or given < limit:
        size = PAGE_LIMIT if limit is None else min(PAGE_LIMIT, limit - given)
        page = transport.read(Page[kind], transport.call("GET", path, params={**query, "limit": size}))  # type: ignore[valid-type]
        yield from page.data
        given += len(page.data)
        if not page.has_more or page.next is None or page.next == query.get("after"):
            return
        query["after"] = page.next
