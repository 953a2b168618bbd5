"""`foundry.uploads`: files in parts. Sent again after a cut line, a crash or a week, only what is missing is sent."""

import hashlib
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path

from foundry.client import resource
from foundry.client.exchange import Exchange, below
from foundry.client.flow import Flow, Items, Resource, T, Work, listing, verb
from foundry.client.pages import every
from foundry.errors import InvalidData
from foundry.spec.library import Upload, UploadPurpose
from foundry.spec.resources import Page

_PATH = "/v1/uploads"
_ASSEMBLY_SILENCE_S = 3600.0
"""After the last part the service reads the whole file more than once before it answers."""

Report = Callable[[int, int], None]
"""Called with the bytes that have arrived and the bytes of the whole file."""


class Uploads(Resource[T]):
    """Uploads of the key's project."""

    @verb
    def send(
        self, path: str | Path, name: str | None = None, *, purpose: UploadPurpose = "dataset",
        progress: Report | None = None,
    ) -> Flow[Upload]:  # fmt: skip
        """Bring a file to the service and complete its upload.

        One that was interrupted, by whatever program on whatever machine, is found by the file's digest and goes on.
        Every part is checked by its digest on arrival, and the whole by its own. Raises `InvalidData` for a file that
        is not there or is empty, and a refusal that names the line when a dataset is not sound.
        """
        return (yield from send(self._transport, Path(path), name, purpose, progress))

    @verb
    def get(self, upload_id: str) -> Flow[Upload]:
        """One upload with the parts that are missing; raises `NotFound`."""
        return (yield from resource.get(self._transport, Upload, _PATH, upload_id))

    @listing
    def list(self, *, status: str | None = None, sha256: str | None = None, limit: int | None = None) -> Items[Upload]:
        """Uploads, newest first; of one status, or of one file by its digest."""
        return every(self._transport, _PATH, Upload, limit=limit, status=status, sha256=sha256)

    @verb
    def cancel(self, upload_id: str) -> Flow[Upload]:
        """End an upload and remove its parts."""
        return (yield from resource.change(self._transport, Upload, "POST", below(_PATH, upload_id, "cancel")))


def require_file(path: Path) -> int:
    """The bytes of a file; raise `InvalidData` when there is none, or nothing in it."""
    if not path.is_file():
        raise InvalidData(f"there is no file {str(path)!r}")
    if not (size := path.stat().st_size):
        raise InvalidData(f'{path} is empty; each line is one JSON object such as {{"text": ...}}')
    return size


def send(
    exchange: Exchange, path: Path, name: str | None, purpose: UploadPurpose, progress: Report | None,
    idempotency_key: str | None = None,
) -> Flow[Upload]:  # fmt: skip
    """Find or begin the upload of a file, send what is missing, complete it.

    With a key it is found by that, also when it is completed; without one by the file's digest, while it is open.
    """
    size = require_file(path)
    sha256: str = yield Work(partial(_sha256_of, path))
    name = name or path.name
    upload = None
    if idempotency_key is None:
        upload = yield from _begun(exchange, name, purpose, size, sha256)
    if upload is None:
        body = {"name": name, "purpose": purpose, "bytes": size, "sha256": sha256}
        upload = yield from resource.create(exchange, Upload, _PATH, body, idempotency_key)
    while upload.missing_parts:
        done = upload.received_bytes
        for number in upload.missing_parts:
            part: bytes = yield Work(partial(_read_part, path, (number - 1) * upload.part_bytes, upload.part_bytes))
            yield from _put(exchange, upload.id, number, part)
            done += len(part)
            if progress is not None:
                progress(done, size)
        upload = yield from resource.get(exchange, Upload, _PATH, upload.id)
    response = yield from exchange.call(
        "POST", below(_PATH, upload.id, "complete"), timeout=_ASSEMBLY_SILENCE_S,
    )  # fmt: skip
    return exchange.read(Upload, response)


def _begun(exchange: Exchange, name: str, purpose: str, size: int, sha256: str) -> Flow[Upload | None]:
    query = {"status": "open", "sha256": sha256, "limit": 100}
    response = yield from exchange.call("GET", _PATH, params=query)
    wanted = (name, purpose, size)
    found = exchange.read(Page[Upload], response).data
    return next((upload for upload in found if (upload.name, upload.purpose, upload.bytes) == wanted), None)


def _put(exchange: Exchange, upload_id: str, number: int, part: bytes) -> Flow[None]:
    digest = b64encode(hashlib.sha256(part).digest()).decode()
    headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"}
    yield from exchange.call("PUT", below(_PATH, upload_id, "parts", str(number)), content=part, headers=headers)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_part(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
