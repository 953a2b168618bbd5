"""An installation with short times on SQLite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.workers.works import Works


@pytest.fixture
def works(sqlite_url: str, tmp_path: Path) -> Iterator[Works]:
    """An installation on SQLite."""
    works = Works(sqlite_url, tmp_path / "home")
    yield works
    works.close()
