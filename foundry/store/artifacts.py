"""Bytes under their digest: written once, never changed, shared by all that have the same content."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from foundry.errors import ArtifactDamaged, NotFound, StorageFull
from foundry.store.settings import Settings

_BLOCK_BYTES = 2**20
_ABANDONED_S = 24 * 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Blob(NamedTuple):
    """What was stored."""

    sha256: str
    bytes: int


class ArtifactStore(ABC):
    """The seam between the service and where bytes lie; tests/unit/store/test_store_artifacts.py is its contract."""

    @abstractmethod
    def put(self, path: Path, *, sha256: str | None = None) -> Blob:
        """Keep a copy of a file; it is safe on disk when this returns.

        Raises `ArtifactDamaged`, with nothing kept, when `sha256` is given and is not the digest; `StorageFull`.
        """

    @abstractmethod
    def path(self, sha256: str) -> Path:
        """A local file with these bytes, not to be changed; raise `NotFound`."""

    @abstractmethod
    def exists(self, sha256: str) -> bool:
        """Whether these bytes are kept."""

    @abstractmethod
    def remove(self, sha256: str, *, older_than_s: float) -> None:
        """Let go of bytes that were put longer ago than that; those put since stay, for somebody may need them."""

    @abstractmethod
    def read(self, sha256: str, start: int, length: int) -> bytes:
        """Some of the bytes, fewer where they end; raise `NotFound`."""

    @abstractmethod
    def digests(self, *, older_than_s: float) -> Iterator[str]:
        """What is kept and was put longer ago than that, in no order."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove from this machine what is of no more use: halves of files that a dead process was putting."""

    def link(self, sha256: str, lives_s: float) -> str | None:
        """An address from which anybody may read these bytes for so long; None when the store has none to give."""
        return None

    def open(self, sha256: str) -> BinaryIO:
        """The bytes, to read; raise `NotFound`."""
        return self.path(sha256).open("rb")


class LocalArtifacts(ArtifactStore):
    """Files below one folder: blobs/aa/aabbcc..., written under incoming/ and renamed into place."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, path: Path, *, sha256: str | None = None) -> Blob:
        incoming = self._root / "incoming" / secrets.token_hex(16)
        with storage_errors(self._root):
            incoming.parent.mkdir(parents=True, exist_ok=True)
            try:
                blob = copy_hashed(path, incoming)
                if sha256 is not None and blob.sha256 != sha256:
                    raise ArtifactDamaged(f"{path.name}: its SHA-256 is {blob.sha256}, not {sha256} as recorded")
                self._keep(incoming, self._place(blob.sha256))
            finally:
                with suppress(FileNotFoundError):
                    incoming.unlink()
        return blob

    def _keep(self, incoming: Path, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(incoming, 0o444)
        with self._locked(fcntl.LOCK_SH):
            incoming.replace(final)
        for folder in (final.parent, final.parent.parent):
            _sync_folder(folder)

    def path(self, sha256: str) -> Path:
        found = self._place(sha256)
        if not found.is_file():
            raise NotFound(f"no artifact {sha256!r:.80}")
        return found

    def exists(self, sha256: str) -> bool:
        return self._place(sha256).is_file()

    def remove(self, sha256: str, *, older_than_s: float) -> None:
        place = self._place(sha256)
        with suppress(FileNotFoundError), self._locked(fcntl.LOCK_EX):  # nobody puts it between the look and the end
            if time.time() - place.stat().st_mtime > older_than_s:
                place.unlink()

    def read(self, sha256: str, start: int, length: int) -> bytes:
        with self.open(sha256) as file:
            file.seek(start)
            return file.read(length)

    def digests(self, *, older_than_s: float) -> Iterator[str]:
        for place in (self._root / "blobs").glob("??/*"):
            with suppress(FileNotFoundError):
                if time.time() - place.stat().st_mtime > older_than_s:
                    yield place.name

    def sweep(self) -> None:
        for left in (self._root / "incoming").glob("[0-9a-f]" * 32):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    left.unlink()

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """The folder itself is what is locked: no file that is neither a blob nor on its way to be one."""
        self._root.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._root, os.O_RDONLY)
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)

    def _place(self, sha256: str) -> Path:
        return self._root / place_of(sha256)


def place_of(sha256: str) -> str:
    """Where bytes lie below the root of a store; raise `NotFound` for what is no digest."""
    if not _SHA256.fullmatch(sha256):
        raise NotFound(f"no artifact {sha256!r:.80}: an artifact is named by 64 hexadecimal digits")
    return f"blobs/{sha256[:2]}/{sha256}"


def open_artifacts(settings: Settings) -> ArtifactStore:
    """The store that the operator chose; raise `InvalidSettings` or `MissingExtra`."""
    if settings.artifacts_url is None:
        return LocalArtifacts(settings.artifacts)
    from foundry.store.s3 import S3Artifacts  # its library is an extra of its own

    return S3Artifacts(settings.artifacts_url, settings.artifacts / "cache", settings.artifact_cache_bytes)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Say "the disk is full" as `StorageFull`, which names the folder and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"no space left for {folder}. Make room there, then resume the job or send it again"
            ) from error
        raise


def copy_hashed(source: Path, target: Path) -> Blob:
    """Copy a file to a new one that is safe on disk when this returns."""
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as read, target.open("xb") as written:
        while block := read.read(_BLOCK_BYTES):
            digest.update(block)
            written.write(block)
            size += len(block)
        written.flush()
        os.fsync(written.fileno())
    return Blob(digest.hexdigest(), size)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
