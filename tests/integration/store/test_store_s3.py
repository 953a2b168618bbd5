"""Artifacts in a bucket: the contract of every store, on a real server that speaks S3; then what only a bucket has."""

import hashlib
import os
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from foundry.errors import ArtifactDamaged, InvalidSettings, NotFound, StorageUnavailable
from foundry.store.s3 import S3Artifacts
from tests.servers import free_port
from tests.unit.store.test_store_artifacts import CONTENT, SHA256, ArtifactStoreContract

pytestmark = pytest.mark.integration
_NUMBERS = count(1)
ACCESS: Any = {
    "region": "us-east-1", "access_key_id": "test", "secret_access_key": "test", "client_options": {"allow_http": True},
}  # fmt: skip
LARGE = 40 * 2**20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def opened(endpoint: str, cache: Path, bucket: str, cache_bytes: int = 10**9) -> S3Artifacts:
    return S3Artifacts(
        f"s3://{bucket}/some/prefix", cache, cache_bytes, endpoint=endpoint, **ACCESS
    )  # fmt: skip


@pytest.fixture
def bucket(endpoint: str) -> str:
    """A new bucket."""
    name = f"artifacts-{next(_NUMBERS)}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return name


class TestS3Artifacts(ArtifactStoreContract):
    @pytest.fixture
    def artifacts(self, endpoint: str, bucket: str, tmp_path: Path) -> S3Artifacts:
        return opened(endpoint, tmp_path / "cache", bucket)

    @pytest.fixture
    def elsewhere(self, endpoint: str, bucket: str, tmp_path: Path) -> S3Artifacts:
        """The same bucket from another machine."""
        return opened(endpoint, tmp_path / "elsewhere", bucket)

    def test_another_machine_finds_the_bytes(
        self, artifacts: S3Artifacts, elsewhere: S3Artifacts, file: Path, tmp_path: Path
    ) -> None:
        artifacts.put(file)
        assert elsewhere.exists(SHA256)
        assert elsewhere.path(SHA256).read_bytes() == CONTENT
        assert not list((tmp_path / "elsewhere" / "incoming").iterdir())

    def test_a_large_file_goes_in_parts_and_comes_back_whole(
        self, artifacts: S3Artifacts, elsewhere: S3Artifacts, tmp_path: Path
    ) -> None:
        path = tmp_path / "large"
        path.write_bytes(os.urandom(2**20) * (LARGE // 2**20) + b"end")
        blob = artifacts.put(path)
        assert hashlib.sha256(elsewhere.path(blob.sha256).read_bytes()).hexdigest() == blob.sha256
        assert elsewhere.read(blob.sha256, LARGE, 100) == b"end"

    def test_two_machines_that_put_the_same_bytes_at_once_keep_them_once(
        self, artifacts: S3Artifacts, elsewhere: S3Artifacts, file: Path
    ) -> None:
        start, failed = threading.Barrier(2), []

        def put(store: S3Artifacts) -> None:
            start.wait()
            try:
                store.put(file)
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=put, args=(store,)) for store in (artifacts, elsewhere)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == [] and list(artifacts.digests(older_than_s=-1)) == [SHA256]

    def test_bytes_that_changed_in_the_bucket_are_refused(
        self, artifacts: S3Artifacts, elsewhere: S3Artifacts, file: Path, endpoint: str, bucket: str
    ) -> None:
        artifacts.put(file)
        behind = S3Store.from_url(f"s3://{bucket}/some/prefix", endpoint=endpoint, **ACCESS)
        obstore.put(behind, f"blobs/{SHA256[:2]}/{SHA256}", b"evil")
        with pytest.raises(ArtifactDamaged, match=SHA256):
            elsewhere.path(SHA256)
        assert elsewhere.exists(SHA256)  # it is not ours to remove

    def test_a_link_gives_the_bytes_and_parts_of_them_without_any_key(self, artifacts: S3Artifacts, file: Path) -> None:
        artifacts.put(file)
        link = artifacts.link(SHA256, 60)
        assert link is not None and "Signature" in link and "test%2F" in link
        with urllib.request.urlopen(link) as answer:
            assert answer.read() == CONTENT
        with urllib.request.urlopen(urllib.request.Request(link, headers={"Range": "bytes=6998-"})) as answer:
            assert (answer.status, answer.read()) == (206, CONTENT[6998:])

    def test_copies_that_nobody_used_lately_make_room(
        self, endpoint: str, bucket: str, file: Path, tmp_path: Path
    ) -> None:
        small = opened(endpoint, tmp_path / "small", bucket, cache_bytes=10_000)
        small.put(file)
        copy = small.path(SHA256)
        os.utime(copy, (0, 0))
        file.write_bytes(CONTENT + b"another")
        other = small.put(file)
        assert not copy.exists() and small.path(other.sha256).exists()
        assert small.path(SHA256).read_bytes() == CONTENT  # fetched again

    def test_a_bucket_that_is_not_there_is_an_operators_error_with_its_name(
        self, endpoint: str, file: Path, tmp_path: Path
    ) -> None:
        missing = opened(endpoint, tmp_path / "cache", "no-such-bucket")
        with pytest.raises((StorageUnavailable, NotFound)):
            missing.put(file)


def test_an_address_that_is_no_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="s3://BUCKET"):
        S3Artifacts("https://bucket.example", tmp_path, 1)
