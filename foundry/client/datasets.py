"""`foundry.datasets`: upload once, use in many jobs."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from foundry.client.pages import every
from foundry.client.transport import Transport, below
from foundry.errors import InvalidData
from foundry.intake.documents import JSONL_SUFFIXES
from foundry.spec.resources import Dataset

_PATH = "/v1/datasets"
_CHUNK_BYTES = 1 << 20
_ANY = "application/octet-stream"
"""Lets the service find out by itself whether it is JSON Lines or text."""
_UPLOAD_SILENCE_S = 900.0
"""After the last byte the service reads the whole file once more before it answers."""


class Datasets:
    """Datasets of the key's project."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(self, path: str | Path, name: str | None = None, *, idempotency_key: str | None = None) -> Dataset:
        """Send a JSON Lines or text file; the service validates all of it before anything is kept.

        A cut connection is tried again under the same key, so a retry never makes a second dataset. Raises
        `InvalidData` when there is no such file, and a refusal that names the line when the service finds fault.
        """
        path = Path(path)
        if not path.is_file():
            raise InvalidData(f"there is no file {str(path)!r}")
        size = path.stat().st_size
        if not size:
            raise InvalidData(f'{path} is empty; each line is one JSON object such as {{"text": ...}}')
        response = self._transport.call(
            "POST",
            _PATH,
            params={"name": name or path.name},
            content=_FileBody(path),
            headers={
                "Content-Length": str(size),
                "Content-Type": "application/jsonl" if path.suffix.lower() in JSONL_SUFFIXES else _ANY,
                "Idempotency-Key": idempotency_key or uuid4().hex,
            },
            timeout=_UPLOAD_SILENCE_S,
        )
        return self._transport.read(Dataset, response)

    def get(self, dataset_id: str) -> Dataset:
        """One dataset; raises `NotFound`."""
        return self._transport.read(Dataset, self._transport.call("GET", below(_PATH, dataset_id)))

    def list(self, *, limit: int | None = None) -> Iterator[Dataset]:
        """Every dataset, newest first."""
        return every(self._transport, _PATH, Dataset, limit=limit)


class _FileBody:
    """A file as a request body that can be sent again from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
