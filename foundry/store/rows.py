"""The base of every table, and the types that every database keeps alike."""

import json
import math
from typing import Any, cast

from sqlalchemy import BigInteger, Double, MetaData, Table, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator


class Words(TypeDecorator[str]):
    """Text from outside. PostgreSQL refuses NUL and lone surrogates: both become U+FFFD, on every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return storable(value)


def storable(text: str) -> str:
    """A text as every database gives it back."""
    return text.replace("\0", "�").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Json(TypeDecorator[Any]):
    """A document as ASCII text, kept alike by every database. NaN and infinity, unknown to JSON, become null."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        try:
            return _compact(value)
        except ValueError:  # seldom: so only then is every item looked at
            return _compact(_finite(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


class Row(DeclarativeBase):
    """The base of every table. Constraints have names so that a migration can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Words, int: BigInteger, float: Double}  # noqa: RUF012 - SQLAlchemy reads it so


def table_of(kind: type[Row]) -> Table:
    """The table itself, for statements that make no objects."""
    return cast(Table, kind.__table__)
