from collections.abc import Iterator

import pytest

from foundry.client.client import Foundry
from tests.unit.client.tiny_service import TinyService


@pytest.fixture
def service() -> Iterator[TinyService]:
    with TinyService() as service:
        yield service


@pytest.fixture
def foundry(service: TinyService) -> Iterator[Foundry]:
    with Foundry(service.url, "fdy_k_secret", retries=2) as client:
        yield client
