"""Sending stored bytes so that a download can stop anywhere and go on later."""

from base64 import b64encode
from pathlib import Path, PurePosixPath

from flask import Response, send_file

from foundry.spec.variant import Artifact

_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8"}


def send_artifact(blob: Path, artifact: Artifact) -> Response:
    """The file, or the part that Range asks for while If-Range still holds; 416 when there is no such part.

    The digest is the entity tag. Repr-Digest (RFC 9530) is of the whole file, also on a part of it.
    """
    name = PurePosixPath(artifact.path)
    response = send_file(
        blob, mimetype=_MEDIA_TYPES.get(name.suffix, "application/octet-stream"), as_attachment=True,
        download_name=name.name, conditional=True, etag=artifact.sha256,
    )  # fmt: skip
    response.headers.pop("Last-Modified", None)  # when this copy was written says nothing about the bytes
    response.headers["Repr-Digest"] = f"sha-256=:{b64encode(bytes.fromhex(artifact.sha256)).decode()}:"
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    return response
