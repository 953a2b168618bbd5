"""Style sheet, scripts and pictures: read once, compressed once, kept by browsers for as long as they stay the same.

Pages themselves are sent as they are: what carries a secret and repeats what a reader typed must not be compressed
(BREACH), and none is large.
"""

import gzip
import mimetypes
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from flask import Blueprint, Response, request, url_for
from werkzeug.exceptions import NotFound

assets = Blueprint("assets", __name__)
_FOLDER = Path(__file__).parent / "static"


class _Asset(NamedTuple):
    content: bytes
    compressed: bytes
    media_type: str
    digest: str


@assets.get("/static/<version>/<path:name>")
def send(version: str, name: str) -> Response:
    """One file. Its address has a digest over all of them: browsers keep it, and scripts find each other by name."""
    found = _all().get(name)
    if found is None:
        raise NotFound(f"there is no file {name!r:.200}")
    packed = bool(request.accept_encodings["gzip"])
    response = Response(found.compressed if packed else found.content, content_type=found.media_type)
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"
    is_current = version == _version()
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_current else "no-cache"
    response.set_etag(f"{found.digest}{'-gzip' if packed else ''}")
    response.make_conditional(request)
    return response


def address_of(name: str) -> str:
    """Where a page finds a file."""
    assert name in _all(), name
    return url_for("assets.send", version=_version(), name=name)


@cache
def _version() -> str:
    return sha256("".join(asset.digest for _, asset in sorted(_all().items())).encode()).hexdigest()[:12]


@cache
def _all() -> dict[str, _Asset]:
    return {str(path.relative_to(_FOLDER)): _read(path) for path in _FOLDER.rglob("*") if path.is_file()}


def _read(path: Path) -> _Asset:
    content = path.read_bytes()
    media_type = mimetypes.guess_type(path.name)[0] or "text/plain"
    if media_type.startswith("text/") or media_type.endswith(("javascript", "xml")):
        media_type += "; charset=utf-8"
    return _Asset(content, gzip.compress(content, mtime=0), media_type, sha256(content).hexdigest())
