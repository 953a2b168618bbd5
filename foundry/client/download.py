"""One file over HTTP: written aside, continued where it broke off, checked against its digest, renamed into place."""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from foundry.client.exchange import backoff_s
from foundry.client.transport import Transport
from foundry.errors import DownloadCorrupt, RequestFailed, ServiceUnreachable, StorageFull
from foundry.spec.variant import Artifact

Report = Callable[[str, int, int], None]
"""Called with a file's path, the bytes that are there and the bytes there will be; from several threads."""

_PARTIAL = ".partial"
_BLOCK_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")


class Interrupted(Exception):
    """Another file failed; this one stays partial and is continued next time."""


def place(folder: Path, path: str) -> Path:
    """Where a file of a variant goes; raise `DownloadCorrupt` for a path that would lead out of the folder."""
    parts = path.split("/")
    odd = any(character in path for character in '\\:*?"<>|') or any(ord(character) < 32 for character in path)
    if odd or any(part in ("", ".", "..") for part in parts) or path.endswith(_PARTIAL):
        raise DownloadCorrupt(
            f"the service names a file {path!r}, which is not a plain relative path; nothing was written"
        )
    return folder.joinpath(*parts)


def fetch(
    transport: Transport, url: str, artifact: Artifact, target: Path, *, report: Report, stop: threading.Event
) -> None:
    """Bring one file to `target`; a file that is already right is left alone.

    Goes on with `target`.partial from an earlier try, of this process or another. Raises `DownloadCorrupt`, with the
    partial file removed, when the bytes are not those of the digest; on any other error the partial file stays.
    """
    if target.is_file() and target.stat().st_size == artifact.bytes and sha256_of(target) == artifact.sha256:
        report(artifact.path, artifact.bytes, artifact.bytes)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _Partial(target, artifact) as partial:
            _fill(transport, url, partial, report, stop)
            partial.check()
            partial.keep()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"no space left for {target}; free some and start the download again: it goes on"
            ) from error
        raise


def _fill(transport: Transport, url: str, partial: "_Partial", report: Report, stop: threading.Event) -> None:
    """Ask for the missing bytes until all are there; give up when too many cuts in a row brought nothing."""
    cuts = 0
    while partial.missing:
        before = partial.size
        try:
            _receive(transport, url, partial, report, stop)
            if partial.missing:
                raise ServiceUnreachable(f"{partial.artifact.path}: the answer ended {partial.missing:,} bytes early")
        except ServiceUnreachable:
            cuts = 0 if partial.size > before else cuts + 1
            if cuts > transport.retries:
                raise
            time.sleep(backoff_s(cuts))


def _receive(transport: Transport, url: str, partial: "_Partial", report: Report, stop: threading.Event) -> None:
    artifact = partial.artifact
    headers = {"Accept-Encoding": "identity"}
    if partial.size:
        # Were it not the same bytes any more, the service would send all of them instead of the rest.
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": f'"{artifact.sha256}"'}
    try:
        with transport.stream(url, headers=headers) as response:
            partial.seek(_start_of(response.status_code, response.headers.get("Content-Range", "")))
            for chunk in response.iter_bytes():
                if stop.is_set():
                    raise Interrupted
                partial.append(chunk)
                report(artifact.path, partial.size, artifact.bytes)
    except RequestFailed as refused:
        if refused.status != 416:
            raise
        raise partial.corrupt(f"the service has fewer than {partial.size:,} bytes of it") from refused


def _start_of(status: int, content_range: str) -> int:
    found = _CONTENT_RANGE.match(content_range)
    return int(found[1]) if status == 206 and found else 0


class _Partial:
    """`<file>.partial`: bytes from the beginning, and their running digest."""

    def __init__(self, target: Path, artifact: Artifact) -> None:
        self.artifact = artifact
        self._target = target
        self._path = target.with_name(target.name + _PARTIAL)

    def __enter__(self) -> Self:
        self._file = open(self._path, "a+b")
        self._digest = hashlib.sha256()
        self.size = 0
        self._file.seek(0)
        while block := self._file.read(_BLOCK_BYTES):
            self._digest.update(block)
            self.size += len(block)
        if self.size > self.artifact.bytes:
            self.seek(0)
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        return self.artifact.bytes - self.size

    def seek(self, start: int) -> None:
        """The next bytes belong at `start`: where we are, or at the beginning when all are sent anew."""
        if start == self.size:
            return
        if start:
            raise self.corrupt(f"asked for bytes from {self.size:,}, got them from {start:,}")
        self._file.truncate(0)
        self._digest, self.size = hashlib.sha256(), 0

    def append(self, chunk: bytes) -> None:
        if len(chunk) > self.missing:
            raise self.corrupt(f"more than its {self.artifact.bytes:,} bytes were sent")
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def check(self) -> None:
        """Compare the digest with the manifest's."""
        if (found := self._digest.hexdigest()) != self.artifact.sha256:
            raise self.corrupt(f"its sha256 is {found}, the manifest says {self.artifact.sha256}")

    def keep(self) -> None:
        """Flush to the disk and rename into place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(self._target)

    def corrupt(self, why: str) -> DownloadCorrupt:
        """Remove the file and return the error to raise."""
        self._path.unlink(missing_ok=True)
        return DownloadCorrupt(f"{self.artifact.path}: {why}. What was received is removed; start the download again")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
