"""A store of each kind with one project."""

from pathlib import Path

import pytest

from foundry.store.database import Database
from foundry.store.jobs import Jobs
from foundry.store.settings import Settings
from tests import factories


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with the real times."""
    return factories.settings(tmp_path / "home")


@pytest.fixture
def project_id(database: Database) -> str:
    """The project that the test's caller belongs to."""
    return factories.project(database)


@pytest.fixture
def jobs(database: Database, settings: Settings) -> Jobs:
    """Jobs on a database of each kind."""
    return Jobs(database, settings)
