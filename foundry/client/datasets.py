"""`foundry.datasets`: upload once, use in many jobs."""

from pathlib import Path
from uuid import uuid4

from foundry.client import resource
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, Work, listing, verb
from foundry.client.pages import every
from foundry.client.uploads import Report, require_file, send
from foundry.intake.documents import JSONL_SUFFIXES
from foundry.spec.library import DatasetReport, DatasetRow
from foundry.spec.resources import Dataset

_PATH = "/v1/datasets"
_IN_ONE_PIECE_BYTES = 1 << 23
_ANY = "application/octet-stream"
"""Lets the service find out by itself whether it is JSON Lines, Parquet or text."""
_VALIDATION_SILENCE_S = 300.0
"""After the last byte the service reads the whole file before it answers."""


class Datasets(Resource[T]):
    """Datasets of the key's project."""

    @verb
    def upload(
        self, path: str | Path, name: str | None = None, *, idempotency_key: str | None = None,
        progress: Report | None = None,
    ) -> Flow[Dataset]:  # fmt: skip
        """Send a JSON Lines, Parquet or text file; the service validates all of it before it is kept.

        Parquet has columns of the names that a line of JSON Lines has. A large file goes in parts, and an interrupted
        upload goes on where it stopped when it is called again. A cut connection is tried again under the same key, so
        a retry never makes a second dataset. Raises `InvalidData` when there is no such file, and a refusal that names
        the line, or in its text the row of Parquet, when the service finds fault.
        """
        path = Path(path)
        if require_file(path) > _IN_ONE_PIECE_BYTES:
            upload = yield from send(self._transport, path, name, "dataset", progress, idempotency_key)
            return (yield from resource.get(self._transport, Dataset, _PATH, upload.dataset_id or ""))
        content: bytes = yield Work(path.read_bytes)
        response = yield from self._transport.call(
            "POST",
            _PATH,
            params={"name": name or path.name},
            content=content,
            headers={
                "Content-Type": "application/jsonl" if path.suffix.lower() in JSONL_SUFFIXES else _ANY,
                "Idempotency-Key": idempotency_key or uuid4().hex,
            },
            timeout=_VALIDATION_SILENCE_S,
        )
        return self._transport.read(Dataset, response)

    @verb
    def get(self, dataset_id: str) -> Flow[Dataset]:
        """One dataset; raises `NotFound`."""
        return (yield from resource.get(self._transport, Dataset, _PATH, dataset_id))

    @listing
    def list(self, *, limit: int | None = None) -> Items[Dataset]:
        """Every dataset, newest first."""
        return every(self._transport, _PATH, Dataset, limit=limit)

    @verb
    def validation(self, dataset_id: str) -> Flow[DatasetReport]:
        """What was found when every document was read: kinds, sizes, duplicates, warnings."""
        return (yield from resource.get(self._transport, DatasetReport, _PATH, dataset_id, "validation"))

    @listing
    def preview(self, dataset_id: str, *, limit: int = 10, characters: int = 1000) -> Items[DatasetRow]:
        """The first documents as a job would read them, each text cut to so many characters."""
        path = below(_PATH, dataset_id, "preview")
        return every(self._transport, path, DatasetRow, limit=limit, characters=characters)

    @verb
    def delete(self, dataset_id: str) -> Flow[None]:
        """Delete a dataset; raises `StateConflict` while a job that has not ended needs it."""
        yield from resource.delete(self._transport, below(_PATH, dataset_id))
