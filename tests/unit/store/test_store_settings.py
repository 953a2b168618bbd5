"""What an operator may set, and what he is told when it cannot be."""

import os
from pathlib import Path

import pytest

from foundry.errors import InvalidSettings
from foundry.store.settings import Settings


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without FOUNDRY_*."""
    for name in [name for name in os.environ if name.startswith("FOUNDRY_")]:
        monkeypatch.delenv(name)


def test_everything_lies_in_home_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.from_env()
    home = tmp_path / ".foundry"
    assert settings.home == home
    assert (settings.artifacts, settings.work) == (home / "artifacts", home / "work")
    assert settings.database_url == f"sqlite:///{home / 'foundry.db'}"
    assert settings.broker_url is None and settings.teacher_roots == ()


def test_environment_sets_each_field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path))
    monkeypatch.setenv("FOUNDRY_WORK", "/scratch")
    monkeypatch.setenv("FOUNDRY_DATABASE_URL", "postgresql://me@db/foundry")
    monkeypatch.setenv("FOUNDRY_TEACHER_ROOTS", os.pathsep.join([str(tmp_path), "/models"]))
    monkeypatch.setenv("FOUNDRY_HUB_ALLOWED", "false")
    monkeypatch.setenv("FOUNDRY_MAX_UPLOAD_BYTES", "5e9")
    monkeypatch.setenv("FOUNDRY_BROKER_URL", "")
    settings = Settings.from_env()
    assert (settings.artifacts, settings.work) == (tmp_path / "artifacts", Path("/scratch"))
    assert settings.database_url == "postgresql://me@db/foundry"
    assert settings.teacher_roots == (tmp_path, Path("/models"))
    assert (settings.hub_allowed, settings.max_upload_bytes, settings.broker_url) == (False, 5_000_000_000, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEASE_S", "soon"), ("LEASE_S", "-1"), ("LEASE_S", "inf"), ("PORT", "99999"), ("MAX_ATTEMPTS", "0")],
)
def test_wrong_value_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FOUNDRY_{name}", value)
    with pytest.raises(InvalidSettings, match=f"FOUNDRY_{name}={value}: "):
        Settings.from_env()


def test_lease_that_one_late_heartbeat_would_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUNDRY_LEASE_S", "15")
    with pytest.raises(InvalidSettings, match=r"lease_s \(15\).*heartbeat_s \(10\)"):
        Settings.from_env()
