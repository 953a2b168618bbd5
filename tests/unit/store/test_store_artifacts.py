"""The contract of `ArtifactStore`. An implementation gives a fixture and passes."""

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from foundry.errors import ArtifactDamaged, NotFound, StorageFull
from foundry.store.artifacts import ArtifactStore, LocalArtifacts, storage_errors

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class ArtifactStoreContract(ABC):
    """What holds of every place that keeps bytes."""

    @pytest.fixture
    @abstractmethod
    def artifacts(self, tmp_path: Path) -> ArtifactStore:
        """An empty store."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A file to be kept."""
        path = tmp_path / "model.safetensors"
        path.write_bytes(CONTENT)
        return path

    def test_put_keeps_a_copy_under_its_digest(self, artifacts: ArtifactStore, file: Path) -> None:
        assert artifacts.put(file) == (SHA256, len(CONTENT))
        file.write_bytes(b"changed later")
        assert artifacts.path(SHA256).read_bytes() == CONTENT
        with artifacts.open(SHA256) as kept:
            assert kept.read() == CONTENT
        assert artifacts.exists(SHA256)

    def test_put_is_the_same_when_done_twice(self, artifacts: ArtifactStore, file: Path) -> None:
        assert artifacts.put(file) == artifacts.put(file, sha256=SHA256)
        assert artifacts.path(SHA256).read_bytes() == CONTENT

    def test_put_keeps_an_empty_file(self, artifacts: ArtifactStore, file: Path) -> None:
        file.write_bytes(b"")
        blob = artifacts.put(file)
        assert blob == (hashlib.sha256().hexdigest(), 0)
        assert artifacts.path(blob.sha256).read_bytes() == b""

    def test_put_keeps_nothing_when_the_digest_differs(self, artifacts: ArtifactStore, file: Path) -> None:
        with pytest.raises(ArtifactDamaged, match=r"model\.safetensors"):
            artifacts.put(file, sha256="0" * 64)
        assert not artifacts.exists(SHA256) and not artifacts.exists("0" * 64)

    def test_put_by_eight_threads_keeps_one_whole_copy(self, artifacts: ArtifactStore, file: Path) -> None:
        threads = [threading.Thread(target=artifacts.put, args=(file,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert artifacts.path(SHA256).read_bytes() == CONTENT

    @pytest.mark.parametrize("name", ["f" * 64, "", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
    def test_unknown_or_strange_name_is_not_found(self, artifacts: ArtifactStore, name: str) -> None:
        for read in (artifacts.path, artifacts.open):
            with pytest.raises(NotFound):
                read(name)

    @pytest.mark.parametrize(("start", "length"), [(0, 7), (3, 10), (6990, 100), (7000, 1), (9000, 5), (0, 0)])
    def test_read_gives_a_part_and_less_where_the_bytes_end(
        self, artifacts: ArtifactStore, file: Path, start: int, length: int
    ) -> None:
        artifacts.put(file)
        assert artifacts.read(SHA256, start, length) == CONTENT[start : start + length]

    def test_remove_takes_the_old_and_leaves_what_was_put_again(self, artifacts: ArtifactStore, file: Path) -> None:
        artifacts.put(file)
        artifacts.remove(SHA256, older_than_s=60)
        assert artifacts.exists(SHA256)
        artifacts.remove(SHA256, older_than_s=-1)
        artifacts.remove(SHA256, older_than_s=-1)  # gone already: nothing to do
        assert not artifacts.exists(SHA256)
        with pytest.raises(NotFound):
            artifacts.path(SHA256)
        artifacts.put(file)
        assert artifacts.path(SHA256).read_bytes() == CONTENT

    def test_digests_lists_what_is_old_enough(self, artifacts: ArtifactStore, file: Path) -> None:
        assert list(artifacts.digests(older_than_s=-1)) == []
        artifacts.put(file)
        assert list(artifacts.digests(older_than_s=-1)) == [SHA256]
        assert list(artifacts.digests(older_than_s=60)) == []

    def test_sweep_takes_nothing_that_is_kept(self, artifacts: ArtifactStore, file: Path) -> None:
        artifacts.put(file)
        artifacts.sweep()
        assert artifacts.path(SHA256).read_bytes() == CONTENT


class TestLocalArtifacts(ArtifactStoreContract):
    @pytest.fixture
    def artifacts(self, tmp_path: Path) -> LocalArtifacts:
        return LocalArtifacts(tmp_path / "artifacts")

    def test_a_folder_has_no_links_to_give(self, artifacts: LocalArtifacts, file: Path) -> None:
        artifacts.put(file)
        assert artifacts.link(SHA256, 60) is None

    def test_sweep_removes_what_a_dead_process_was_putting(self, artifacts: LocalArtifacts, tmp_path: Path) -> None:
        incoming = tmp_path / "artifacts" / "incoming"
        incoming.mkdir(parents=True)
        old, new = incoming / ("a" * 32), incoming / ("b" * 32)
        for half in (old, new):
            half.write_bytes(b"half")
        os.utime(old, (0, 0))
        artifacts.sweep()
        assert list(incoming.iterdir()) == [new]

    def test_nothing_is_left_aside_after_success_or_failure(
        self, artifacts: LocalArtifacts, file: Path, tmp_path: Path
    ) -> None:
        artifacts.put(file)
        with pytest.raises(ArtifactDamaged):
            artifacts.put(file, sha256="0" * 64)
        kept = [path.relative_to(tmp_path) for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
        assert kept == [Path("artifacts/blobs") / SHA256[:2] / SHA256]

    def test_blob_cannot_be_written_to_by_mistake(self, artifacts: LocalArtifacts, file: Path) -> None:
        artifacts.put(file)
        assert artifacts.path(SHA256).stat().st_mode & 0o222 == 0

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_full_disk_is_storage_full_with_the_folder(self, tmp_path: Path) -> None:
        with pytest.raises(StorageFull, match=str(tmp_path)), storage_errors(tmp_path):
            Path("/dev/full").write_bytes(CONTENT)
