"""Artifacts in a bucket of S3, or of what speaks like it, with copies of those in use in a folder of this machine.

Everything is copied to the folder first and sent from there, so what is stored is what was hashed. Requests that fail
on the way are repeated by the library; what still fails is `StorageUnavailable`.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from foundry.errors import ArtifactDamaged, InvalidSettings, MissingExtra, NotFound, StorageUnavailable
from foundry.store.artifacts import ArtifactStore, Blob, LocalArtifacts, place_of, storage_errors

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, UnknownConfigurationKeyError
    from obstore.store import S3Store
except ImportError as error:
    raise MissingExtra("obstore", "s3") from error

_PART_BYTES = 16 * 2**20
_FRESH_S = 600.0
"""Bytes that are in the bucket for longer are sent again, so that nobody removes them as old meanwhile."""
_IN_USE_S = 600.0
"""A copy that was asked for since stays, even where there are too many."""
_RETRY: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}


class S3Artifacts(ArtifactStore):
    """blobs/aa/aabbcc... below the prefix of a bucket."""

    def __init__(self, url: str, cache: Path, cache_bytes: int, **options: Any) -> None:
        """`options` go to obstore's `S3Store`, before what AWS_* variables say. Raises `InvalidSettings`."""
        if not url.startswith("s3://"):
            raise InvalidSettings(f"FOUNDRY_ARTIFACTS_URL={url}: give s3://BUCKET or s3://BUCKET/PREFIX")
        try:
            self._store = S3Store.from_url(url, retry_config=_RETRY, **options)
        except (BaseError, UnknownConfigurationKeyError, ValueError) as error:
            raise InvalidSettings(f"FOUNDRY_ARTIFACTS_URL={url}: {error}") from error
        self._url = url
        self._cache = LocalArtifacts(cache)
        self._folder = cache
        self._cache_bytes = cache_bytes

    def put(self, path: Path, *, sha256: str | None = None) -> Blob:
        blob = self._cache.put(path, sha256=sha256)
        key = place_of(blob.sha256)
        with self._errors(blob.sha256):
            if not self._is_fresh(blob):
                self._send(key, self._cache.path(blob.sha256))
        self._evict()
        return blob

    def _is_fresh(self, blob: Blob) -> bool:
        try:
            there = obstore.head(self._store, place_of(blob.sha256))
        except (NotFoundError, FileNotFoundError):
            return False
        age_s = (datetime.now(UTC) - there["last_modified"]).total_seconds()
        return bool(there["size"] == blob.bytes and age_s < _FRESH_S)

    def _send(self, key: str, copy: Path) -> None:
        """Whole or not at all: a part of many is no object before the last has arrived."""
        is_small = copy.stat().st_size <= _PART_BYTES
        try:
            # Small ones by a conditional write: two that put the same bytes at once write them once.
            mode = "create" if is_small and not self._is_there(key) else "overwrite"
            obstore.put(self._store, key, copy, mode=mode, use_multipart=not is_small, chunk_size=_PART_BYTES)
        except AlreadyExistsError:
            return  # another has just put them

    def _is_there(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    def path(self, sha256: str) -> Path:
        """A copy on this machine, fetched when it is not there; hold it open or link it where it must stay."""
        with suppress(NotFound):
            kept = self._cache.path(sha256)
            os.utime(kept)
            return kept
        incoming = self._folder / "incoming" / secrets.token_hex(16)
        with storage_errors(self._folder), self._errors(sha256):
            incoming.parent.mkdir(parents=True, exist_ok=True)
            try:
                with incoming.open("wb") as file:
                    for chunk in obstore.get(self._store, place_of(sha256)):
                        file.write(chunk)
                self._cache.put(incoming, sha256=sha256)
            finally:
                incoming.unlink(missing_ok=True)
        self._evict(keep=sha256)
        return self._cache.path(sha256)

    def exists(self, sha256: str) -> bool:
        with suppress(NotFound), self._errors(sha256):
            return self._is_there(place_of(sha256))
        return False

    def remove(self, sha256: str, *, older_than_s: float) -> None:
        key = place_of(sha256)
        with suppress(NotFound), self._errors(sha256):
            age_s = (datetime.now(UTC) - obstore.head(self._store, key)["last_modified"]).total_seconds()
            if age_s > older_than_s:
                obstore.delete(self._store, key)
                self._cache.remove(sha256, older_than_s=-1.0)

    def read(self, sha256: str, start: int, length: int) -> bytes:
        with self._errors(sha256):
            size = obstore.head(self._store, place_of(sha256))["size"]
            end = min(size, start + length)
            if start >= end:
                return b""
            return bytes(obstore.get_range(self._store, place_of(sha256), start=start, end=end))

    def digests(self, *, older_than_s: float) -> Iterator[str]:
        with self._errors("*"):
            for batch in obstore.list(self._store, "blobs"):
                for entry in batch:
                    if (datetime.now(UTC) - entry["last_modified"]).total_seconds() > older_than_s:
                        yield str(entry["path"]).rpartition("/")[2]

    def sweep(self) -> None:
        self._cache.sweep()

    def link(self, sha256: str, lives_s: float) -> str | None:
        with self._errors(sha256):
            return str(obstore.sign(self._store, "GET", place_of(sha256), timedelta(seconds=lives_s)))

    def _evict(self, keep: str = "") -> None:
        """Let go of the copies that were used longest ago, until the rest fits."""
        copies = [(place, place.stat()) for place in (self._folder / "blobs").glob("??/*") if place.exists()]
        excess = sum(found.st_size for _, found in copies) - self._cache_bytes
        for place, found in sorted(copies, key=lambda copy: copy[1].st_mtime):
            if excess <= 0:
                return
            if place.name != keep and time.time() - found.st_mtime > _IN_USE_S:
                place.unlink(missing_ok=True)
                excess -= found.st_size

    @contextmanager
    def _errors(self, sha256: str) -> Iterator[None]:
        """The same errors as a folder's."""
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise NotFound(f"no artifact {sha256!r:.80}") from error
        except BaseError as error:
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise StorageUnavailable(
                f"the artifact store {self._url} does not do its part: {first_line:.300}"
            ) from error
        except ArtifactDamaged as error:
            raise ArtifactDamaged(f"{sha256} in {self._url} has other bytes: {error.message}") from error
