"""Lists come in pages: `limit` and `after` in the query, `data`, `has_more` and `next` in the answer."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from api.records import Input
from foundry.errors import FieldProblem, InvalidSpec
from foundry.spec.resources import Page

T = TypeVar("T")
Cursor = Annotated[str, Field(min_length=1, max_length=200)]


class PageQuery(Input):
    """What every list takes."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """The most items that the page may hold."""
    after: Cursor | None = None
    """`next` of the page before."""


class NumberedQuery(Input):
    """What a list takes whose items are numbered from 1, oldest first."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """The most items that the page may hold."""
    after: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """`next` of the page before: the number of its last item."""


def page_of(items: Sequence[T], query: PageQuery, name: Callable[[T], str]) -> Page[T]:
    """One page of a short list that is known as a whole; raise `InvalidSpec` when `after` names none of its items."""
    names = [name(item) for item in items]
    start = 0
    if query.after is not None:
        if query.after not in names:
            detail = f"{query.after!r} is on no page of this list; begin without `after`"
            raise InvalidSpec([FieldProblem(pointer="/query/after", code="unknown_cursor", detail=detail)])
        start = names.index(query.after) + 1
    shown = tuple(items[start : start + query.limit])
    has_more = start + len(shown) < len(items)
    return Page(data=shown, has_more=has_more, next=name(shown[-1]) if has_more else None)
