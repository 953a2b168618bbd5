"""Sending stored bytes so that a download can stop anywhere and go on later."""

from base64 import b64encode
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from flask import Response, abort, request, send_file
from werkzeug.wsgi import wrap_file

from foundry.errors import NotFound
from foundry.spec.variant import Artifact

_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8"}


def send_artifact(blob: Path, artifact: Artifact) -> Response:
    """The file, or the part that Range asks for while If-Range still holds; 416 when there is no such part.

    The digest is the entity tag; 412 when If-Match names another. Repr-Digest (RFC 9530) is of the whole file, also on
    a part of it. Raises `NotFound` when the file has gone since the store gave its path.
    """
    try:
        response = _conditional(blob, artifact)
    except FileNotFoundError as error:
        raise NotFound(f"no artifact {artifact.sha256!r}") from error
    response.headers.pop("Last-Modified", None)  # when this copy was written says nothing about the bytes
    response.headers["Repr-Digest"] = f"sha-256=:{b64encode(bytes.fromhex(artifact.sha256)).decode()}:"
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    return response


def _conditional(blob: Path, artifact: Artifact) -> Response:
    name = PurePosixPath(artifact.path)
    response = send_file(
        blob, mimetype=_MEDIA_TYPES.get(name.suffix, "application/octet-stream"), as_attachment=True,
        download_name=name.name, conditional=True, etag=artifact.sha256,
    )  # fmt: skip
    if response.status_code == 412:  # Werkzeug would send the file all the same
        response.close()
        abort(412)
    if response.status_code == 206 and request.method == "GET":
        _send_part_by_the_kernel(response, blob)
    return response


def _send_part_by_the_kernel(response: Response, blob: Path) -> None:
    """A part as the server sends a whole file; Werkzeug's own way reads it in Python, at three times the cost."""
    part = response.content_range
    with closing(cast(BinaryIO, response.response)):  # also when the file has gone meanwhile
        file = blob.open("rb")
    file.seek(part.start or 0)
    response.response = wrap_file(request.environ, cast(BinaryIO, _Part(file, (part.stop or 0) - (part.start or 0))))
    response.direct_passthrough = True


class _Part:
    """So many bytes of a file from where it stands. Servers that know sendfile take `fileno`, others `read`.

    Where the kernel sends nothing (the reader has gone, or the file system cannot), Python seeks and reads after all.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size
        self.fileno, self.seek, self.close = file.fileno, file.seek, file.close

    def read(self, size: int = -1) -> bytes:
        """The next bytes; empty at the end of the part."""
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
