"""`foundry.variants`: look at finished models and bring them home."""

import hashlib
import json
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from foundry.client import resource
from foundry.client.download import Interrupted, Report, fetch, place
from foundry.client.exchange import below
from foundry.client.flow import Flow, Items, Resource, T, Work, listing, verb
from foundry.client.pages import every
from foundry.client.progress import DownloadProgress
from foundry.client.transport import Transport
from foundry.errors import DownloadCorrupt, NotFound, StorageFull
from foundry.spec.library import Alias
from foundry.spec.measurement import Measurement, NewMeasurement
from foundry.spec.resources import Variant, VariantLineage
from foundry.spec.variant import Artifact, Metrics, VariantManifest

_PATH = "/v1/variants"
_ALIASES = "/v1/aliases"
_MANIFEST = "manifest.json"
_FILES_AT_ONCE = 4


class Variants(Resource[T]):
    """Finished models of the key's project."""

    @listing
    def list(self, *, job_id: str | None = None, limit: int | None = None) -> Items[Variant]:
        """Every variant, newest first; `job_id` keeps those of one job."""
        return every(self._transport, _PATH, Variant, limit=limit, job_id=job_id)

    @verb
    def get(self, variant_id: str) -> Flow[Variant]:
        """One variant; raises `NotFound`."""
        return (yield from resource.get(self._transport, Variant, _PATH, variant_id))

    @verb
    def manifest(self, variant_id: str) -> Flow[VariantManifest]:
        """How the variant came about, what was measured, and the digest of every file."""
        return (yield from resource.get(self._transport, VariantManifest, _PATH, variant_id, "manifest"))

    @verb
    def lineage(self, variant_id: str) -> Flow[VariantLineage]:
        """From which teacher, data and jobs the variant came."""
        return (yield from resource.get(self._transport, VariantLineage, _PATH, variant_id, "lineage"))

    @verb
    def add_measurement(
        self,
        variant_id: str,
        metrics: Metrics,
        *,
        manifest_sha256: str,
        context_tokens: int,
        device: str | None = None,
        target: str | None = None,
    ) -> Flow[Measurement]:
        """Send what the variant did on a device; the answer says whether it is within the budget there.

        `manifest_sha256` is that of the manifest.json that was measured, `target` another device to judge it by.
        """
        new = NewMeasurement(
            manifest_sha256=manifest_sha256, metrics=metrics, context_tokens=context_tokens, device=device,
            target=target,
        )  # fmt: skip
        path = below(_PATH, variant_id, "measurements")
        body = new.model_dump(mode="json", exclude_none=True)
        return (yield from resource.create(self._transport, Measurement, path, body))

    @listing
    def measurements(self, variant_id: str, *, limit: int | None = None) -> Items[Measurement]:
        """What the variant did on devices, newest first."""
        return every(self._transport, below(_PATH, variant_id, "measurements"), Measurement, limit=limit)

    @verb
    def delete(self, variant_id: str) -> Flow[None]:
        """Delete a variant and its files; raises `StateConflict` while an alias points to it."""
        yield from resource.delete(self._transport, below(_PATH, variant_id))

    @verb
    def download(
        self,
        variant_id: str,
        to: str | Path,
        *,
        files: Sequence[str] | None = None,
        progress: bool | Report = True,
    ) -> Flow[Path]:
        """Bring a variant, or those of its `files` (paths or patterns such as '*.gguf'), into the folder `to`.

        Goes on where an earlier download broke off, skips files that are already right, checks every digest against the
        manifest and the manifest against the service's record of it, and renames each file into place only then. The
        manifest comes last: where it stands, everything asked for is complete. `progress` shows bars, or is called as
        `progress(path, done_bytes, total_bytes)` from several threads. Raises `DownloadCorrupt`, `StorageFull`,
        `NotFound`.
        """
        folder = Path(to)
        variant = yield from resource.get(self._transport, Variant, _PATH, variant_id)
        manifest = yield from self._checked_manifest(variant)
        wanted = _chosen(_listed(manifest), files, variant_id)
        places = {artifact: place(folder, artifact.path) for artifact in wanted}
        _reserve(folder, places)
        report = DownloadProgress() if progress is True else nullcontext(progress or _ignore)
        with report as tell:
            yield Work(partial(_fetch_all, self._transport.blocking(), variant_id, places, tell))
        _write_aside(folder / _MANIFEST, manifest)
        return folder

    def _checked_manifest(self, variant: Variant) -> Flow[bytes]:
        response = yield from self._transport.call("GET", _file_url(variant.id, _MANIFEST))
        content: bytes = response.content
        if (found := hashlib.sha256(content).hexdigest()) != variant.manifest_sha256:
            expected = variant.manifest_sha256
            raise DownloadCorrupt(f"{_MANIFEST} of {variant.id}: its sha256 is {found}, the record says {expected}")
        return content


class Aliases(Resource[T]):
    """Names that point to variants and can be moved."""

    @verb
    def put(self, name: str, variant_id: str) -> Flow[Alias]:
        """Let a name point to a variant from now on."""
        path, body = below(_ALIASES, name), {"variant_id": variant_id}
        return (yield from resource.change(self._transport, Alias, "PUT", path, body))

    @verb
    def get(self, name: str) -> Flow[Alias]:
        """Where a name points to now; raises `NotFound`."""
        return (yield from resource.get(self._transport, Alias, _ALIASES, name))

    @listing
    def list(self, *, limit: int | None = None) -> Items[Alias]:
        """Every alias by name."""
        return every(self._transport, _ALIASES, Alias, limit=limit)

    @verb
    def delete(self, name: str) -> Flow[None]:
        """Forget a name; the variant stays."""
        yield from resource.delete(self._transport, below(_ALIASES, name))


def _fetch_all(transport: Transport, variant_id: str, places: dict[Artifact, Path], report: Report) -> None:
    """Several files at once; the first error stops the others at their next piece and is raised."""
    stop = threading.Event()
    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="download") as pool:
        running = [
            pool.submit(fetch, transport, _file_url(variant_id, a.path), a, target, report=report, stop=stop)
            for a, target in places.items()
        ]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: partial files stay and are continued next time
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    errors = [e for f in running if not f.cancelled() and (e := f.exception()) is not None]
    if errors:
        raise next((e for e in errors if not isinstance(e, Interrupted)), errors[0])


def _file_url(variant_id: str, path: str) -> str:
    return below(_PATH, variant_id, "files", *path.split("/"))


def _listed(manifest: bytes) -> list[Artifact]:
    """The files of a manifest. Nothing else is read here, so that a newer service's manifest still downloads."""
    try:
        listed = [Artifact.model_validate(entry) for entry in json.loads(manifest)["files"]]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DownloadCorrupt(f"{_MANIFEST} does not list files with path, bytes and sha256: {error}") from error
    paths = [artifact.path for artifact in listed]
    if len({_MANIFEST, *paths}) != len(paths) + 1:
        raise DownloadCorrupt(f"{_MANIFEST} lists a file twice, or itself: {', '.join(sorted(paths))}")
    return listed


def _chosen(listed: Sequence[Artifact], patterns: Sequence[str] | None, variant_id: str) -> list[Artifact]:
    if patterns is None:
        return list(listed)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in (_MANIFEST, *(a.path for a in listed))):
            names = ", ".join(a.path for a in listed)
            raise NotFound(f"variant {variant_id} has no file {pattern!r}; it has {names}", pointer="/files")
    return [a for a in listed if any(fnmatchcase(a.path, pattern) for pattern in patterns)]


def _reserve(folder: Path, places: dict[Artifact, Path]) -> None:
    """Refuse a download that cannot fit before its first byte."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = 0
    for artifact, target in places.items():
        partial = target.with_name(target.name + ".partial")
        there = next((path.stat().st_size for path in (target, partial) if path.is_file()), 0)
        missing += max(0, artifact.bytes - there)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise StorageFull(
            f"{folder} has {free:,} bytes free, the download needs {missing:,}; free some or choose another"
        )


def _write_aside(target: Path, content: bytes) -> None:
    aside = target.with_name(f"{target.name}.partial")
    aside.write_bytes(content)
    aside.replace(target)


def _ignore(path: str, done_bytes: int, total_bytes: int) -> None:
    pass
