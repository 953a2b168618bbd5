"""Names that point to variants and can be moved: what a device fetches stays one address."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from foundry.errors import NotFound
from foundry.spec.library import Alias
from foundry.spec.resources import Page
from foundry.store import audit
from foundry.store.database import Database, db_now
from foundry.store.pages import moment
from foundry.store.project_tables import AliasRow
from foundry.store.tables import VariantRow


class Aliases:
    """Every method takes the project of the caller."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, project_id: str, name: str, variant_id: str) -> Alias:
        """Let a name point to a variant from now on; raise `NotFound` for the variant."""
        audit.about(name)
        with self._database.write() as session:
            variant = session.get(VariantRow, variant_id)
            if variant is None or variant.project_id != project_id:
                raise NotFound(f"no variant {variant_id!r} in this project", pointer="/variant_id")
            now = session.scalars(select(db_now())).one()
            row = session.get(AliasRow, (project_id, name))
            if row is None:
                row = AliasRow(project_id=project_id, name=name)
                session.add(row)
            row.variant_id, row.updated_at = variant_id, now
            return _record(row)

    def get(self, project_id: str, name: str) -> Alias:
        """Where a name points to; raise `NotFound`."""
        with self._database.read() as session:
            return _record(_find(session, project_id, name))

    def list(self, project_id: str, limit: int = 20, after: str | None = None) -> Page[Alias]:
        """By name; `after` is the `next` of the page before."""
        query = select(AliasRow).where(AliasRow.project_id == project_id).order_by(AliasRow.name).limit(limit + 1)
        if after is not None:
            query = query.where(AliasRow.name > after)
        with self._database.read() as session:
            found = [_record(row) for row in session.scalars(query)]
        shown = tuple(found[:limit])
        has_more = len(found) > limit
        return Page(data=shown, has_more=has_more, next=shown[-1].name if has_more else None)

    def delete(self, project_id: str, name: str) -> None:
        """Forget a name; the variant stays. Raises `NotFound`."""
        with self._database.write() as session:
            session.delete(_find(session, project_id, name))


def names_of(session: Session, variant_id: str) -> tuple[str, ...]:
    """Every name that points to a variant."""
    return tuple(
        session.scalars(select(AliasRow.name).where(AliasRow.variant_id == variant_id).order_by(AliasRow.name))
    )


def _find(session: Session, project_id: str, name: str) -> AliasRow:
    row = session.get(AliasRow, (project_id, name))
    if row is None:
        raise NotFound(f"no alias {name!r} in this project")
    return row


def _record(row: AliasRow) -> Alias:
    return Alias(name=row.name, variant_id=row.variant_id, updated_at=moment(row.updated_at))
