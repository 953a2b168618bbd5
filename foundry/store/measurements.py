"""What variants did on devices: figures that whoever measured them sent, judged against a target's budget."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from foundry.errors import NotFound, QuotaExceeded
from foundry.spec.measurement import Judged, Measurement, NewMeasurement
from foundry.spec.resources import Page
from foundry.spec.variant import Metrics
from foundry.store.database import Database, db_now
from foundry.store.idempotency import take_key
from foundry.store.ids import new_id
from foundry.store.pages import moment, page_of
from foundry.store.records import Idempotency
from foundry.store.tables import MeasurementRow, VariantRow

_MOST = 1000


class Measurements:
    """Every method takes the project of the caller; another project's variant is `NotFound`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, project_id: str, variant_id: str, new: NewMeasurement, judged: Judged,
        idempotency: Idempotency | None = None, *, key_id: str | None = None,
    ) -> Measurement:  # fmt: skip
        """Keep one measurement, or return what the same request made before; `key_id` is of whoever sends it.

        Raises `QuotaExceeded` beyond 1000.
        """
        measurement_id = new_id("msr")
        with self._database.write() as session:
            _require_variant(session, project_id, variant_id)
            made = take_key(session, project_id, idempotency, measurement_id)
            if made is None:
                count = session.scalars(select(func.count()).where(MeasurementRow.variant_id == variant_id)).one()
                if count >= _MOST:
                    raise QuotaExceeded(f"variant {variant_id} has {_MOST} measurements; no more are kept")
                row = MeasurementRow(
                    id=measurement_id, project_id=project_id, variant_id=variant_id, device=new.device,
                    target=judged.target, context_tokens=new.context_tokens,
                    metrics=new.metrics.model_dump(mode="json", exclude_none=True), fits_budget=judged.fits_budget,
                    over_budget=list(judged.over_budget), key_id=key_id,
                    created_at=session.scalars(select(db_now())).one(),
                )  # fmt: skip
                session.add(row)
                session.flush()
                return _record(row)
            earlier = session.get(MeasurementRow, made)
            if earlier is None:
                raise NotFound(f"measurement {made!r} was deleted with its variant")
            return _record(earlier)

    def list(self, project_id: str, variant_id: str, limit: int = 20, after: str | None = None) -> Page[Measurement]:
        """Newest first; `after` is the `next` of the page before. Raises `NotFound`."""
        query = select(MeasurementRow).where(MeasurementRow.variant_id == variant_id)
        with self._database.read() as session:
            _require_variant(session, project_id, variant_id)
            return page_of(session, query, MeasurementRow.id, limit, after, _records)


def _require_variant(session: Session, project_id: str, variant_id: str) -> None:
    row = session.get(VariantRow, variant_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no variant {variant_id!r} in this project")


def _records(session: Session, rows: Sequence[MeasurementRow]) -> Sequence[Measurement]:
    return [_record(row) for row in rows]


def _record(row: MeasurementRow) -> Measurement:
    return Measurement(
        id=row.id, variant_id=row.variant_id, device=row.device, target=row.target, context_tokens=row.context_tokens,
        metrics=Metrics.model_validate(row.metrics), fits_budget=row.fits_budget,
        over_budget=tuple(row.over_budget), key_id=row.key_id, created_at=moment(row.created_at),
    )  # fmt: skip
