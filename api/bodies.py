"""A request body as a file: streamed to disk, never whole in memory, and gone when the request ends."""

import hashlib
import os
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from tempfile import mkdtemp

from flask import request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from api.patience import patience
from foundry.errors import InvalidData
from foundry.intake.documents import JSONL_SUFFIXES, SUFFIX_OF
from foundry.spec.resources import DataFormat
from foundry.store.artifacts import Blob, storage_errors
from foundry.store.settings import Settings

_JSONL = frozenset({"application/jsonl", "application/x-ndjson", "application/x-jsonlines", "application/json"})
_PARQUET = "application/vnd.apache.parquet"
MEDIA_TYPES = (*sorted(_JSONL), _PARQUET, "text/plain", "application/octet-stream")
_CHUNK_BYTES = 2**16
_ABANDONED_S = 24 * 3600
"""A folder this old was left by a process that was killed."""


@contextmanager
def received_body(settings: Settings, name: str) -> Iterator[Path]:
    """The body as a file named data.jsonl, data.parquet or data.txt, by `name` or Content-Type.

    Raises 400 when it ends early, 413 beyond `max_upload_bytes`, 415 for what is no data, and `StorageFull`.
    """
    _require_plain()
    with staging(settings) as folder:
        path = folder / data_name(name, request.mimetype)
        receive(path, settings.max_upload_bytes, settings.upload_silence_s)
        yield path


def data_name(name: str, media_type: str = "") -> str:
    """How data is called on disk, so that it is read as what it is meant to be."""
    suffix = PurePath(name).suffix.lower()
    form: DataFormat = "text"
    if media_type == _PARQUET or suffix == SUFFIX_OF["parquet"]:
        form = "parquet"
    elif media_type in _JSONL or suffix in JSONL_SUFFIXES:
        form = "jsonl"
    return f"data{SUFFIX_OF[form]}"


@contextmanager
def staging(settings: Settings) -> Iterator[Path]:
    """A folder that is gone at the end."""
    incoming = settings.artifacts / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(dir=incoming, prefix="upload-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def receive(path: Path, most_bytes: int, upload_silence_s: float) -> Blob:
    """Write the body of the running request to a new file; raise 400 when it ends early or comes too slowly, 413, and
    `StorageFull`."""
    request.max_content_length = most_bytes
    digest = hashlib.sha256()
    with storage_errors(path.parent), path.open("xb") as file:
        with patience(request.environ.get("gunicorn.socket"), upload_silence_s) as still_there:
            while chunk := request.stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                still_there.set()
        received = file.tell()
        file.flush()
        os.fsync(file.fileno())
    if request.content_length not in (None, received):  # gunicorn ends the stream without a word
        raise BadRequest(f"the body ended after {received:,} of {request.content_length:,} bytes; send it again")
    return Blob(digest.hexdigest(), received)


def require_digest(found: Blob, given: str | None) -> None:
    """Compare what arrived with Content-Digest (RFC 9530); raise `InvalidData`, also for one that cannot be read."""
    if given is None:
        return
    digests = dict(part.strip().split("=", 1) for part in given.split(",") if "=" in part)
    wanted = digests.get("sha-256", "")
    if wanted != f":{b64encode(bytes.fromhex(found.sha256)).decode()}:":
        raise InvalidData(
            f"Content-Digest {given!r:.100} is not that of the body, whose SHA-256 is {found.sha256}; send it again",
            pointer="/headers/content_digest",
        )


def _require_plain() -> None:
    if (request.mimetype and request.mimetype not in MEDIA_TYPES) or "Content-Encoding" in request.headers:
        raise UnsupportedMediaType(
            f"send the file as it is, uncompressed, as one of {', '.join(MEDIA_TYPES)}; "
            f"not {request.headers.get('Content-Encoding') or request.mimetype!r}"
        )


def sweep_abandoned(settings: Settings) -> None:
    """Remove what killed processes left behind; called when a process starts."""
    for folder in (settings.artifacts / "incoming").glob("upload-*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
