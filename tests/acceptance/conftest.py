"""One service for the tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry.client.client import Foundry
from tests.acceptance.services import service, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def foundry(folder: Path) -> Iterator[Foundry]:
    with service(folder) as client:
        yield client


@pytest.fixture(scope="module")
def dataset_id(foundry: Foundry, folder: Path) -> str:
    return foundry.datasets.upload(write_data(folder)).id
