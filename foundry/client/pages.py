"""Lists that come in pages, read as one."""

from typing import Any, TypeVar

from foundry.client.exchange import Exchange
from foundry.client.flow import Emit, Items
from foundry.spec.resources import Page

R = TypeVar("R")
PAGE_LIMIT = 100


def every(exchange: Exchange, path: str, kind: type[R], *, limit: int | None = None, **filters: Any) -> Items[R]:
    """Every item of a list, or the first `limit`; the next page is fetched when the reader gets there.

    `filters` go into the query; those that are None are left out.
    """
    query = {name: value for name, value in filters.items() if value is not None}
    given = 0
    while limit is None or given < limit:
        size = PAGE_LIMIT if limit is None else min(PAGE_LIMIT, limit - given)
        response = yield from exchange.call("GET", path, params={**query, "limit": size})
        page: Page[R] = exchange.read(Page[kind], response)  # type: ignore[valid-type]
        for item in page.data:
            yield Emit(item)
        given += len(page.data)
        if not page.has_more or page.next is None or page.next == query.get("after"):
            return
        query["after"] = page.next
