"""A request body as a file: streamed to disk, never whole in memory, and gone when the request ends."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from tempfile import mkdtemp

from flask import request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from foundry.intake.documents import JSONL_SUFFIXES
from foundry.store.artifacts import storage_errors
from foundry.store.settings import Settings

_JSONL = frozenset({"application/jsonl", "application/x-ndjson", "application/x-jsonlines", "application/json"})
MEDIA_TYPES = (*sorted(_JSONL), "text/plain", "application/octet-stream")
_CHUNK_BYTES = 2**20
_ABANDONED_S = 24 * 3600
"""A folder this old was left by a process that was killed."""


@contextmanager
def received_body(settings: Settings, name: str) -> Iterator[Path]:
    """The body as a file named data.jsonl or data.txt, by `name` or Content-Type.

    Raises 400 when it ends early, 413 beyond `max_upload_bytes`, 415 for what is not text, and `StorageFull`.
    """
    if (request.mimetype and request.mimetype not in MEDIA_TYPES) or "Content-Encoding" in request.headers:
        raise UnsupportedMediaType(
            f"send the file as it is, uncompressed, as one of {', '.join(MEDIA_TYPES)}; "
            f"not {request.headers.get('Content-Encoding') or request.mimetype!r}"
        )
    is_jsonl = request.mimetype in _JSONL or PurePath(name).suffix.lower() in JSONL_SUFFIXES
    request.max_content_length = settings.max_upload_bytes
    incoming = settings.artifacts / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(dir=incoming, prefix="upload-"))
    try:
        path = folder / ("data.jsonl" if is_jsonl else "data.txt")
        with storage_errors(incoming), path.open("xb") as file:
            while chunk := request.stream.read(_CHUNK_BYTES):
                file.write(chunk)
            received = file.tell()
        if request.content_length not in (None, received):  # gunicorn ends the stream without a word
            raise BadRequest(f"the body ended after {received:,} of {request.content_length:,} bytes; send it again")
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_abandoned(settings: Settings) -> None:
    """Remove what killed processes left behind; called when a process starts."""
    for folder in (settings.artifacts / "incoming").glob("upload-*"):
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
