from pathlib import Path

import pytest

from foundry.client.home import find_service
from foundry.errors import ServiceUnreachable, Unauthorized


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FOUNDRY_URL", raising=False)
    monkeypatch.delenv("FOUNDRY_KEY", raising=False)
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path))
    return tmp_path


def _write(home: Path, url: str = "http://127.0.0.1:8321\n", key: str = "fdy_home\n") -> None:
    (home / "url").write_text(url)
    (home / "key").write_text(key)


def test_address_is_the_one_in_the_home_folder_when_nothing_else_is_said(home: Path) -> None:
    _write(home)
    assert find_service() == ("http://127.0.0.1:8321", "fdy_home")


def test_address_in_the_environment_goes_before_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(home)
    monkeypatch.setenv("FOUNDRY_URL", "https://foundry.example/")
    monkeypatch.setenv("FOUNDRY_KEY", "fdy_env")
    assert find_service() == ("https://foundry.example", "fdy_env")
    assert find_service("http://other", "fdy_arg") == ("http://other", "fdy_arg")


def test_key_of_the_home_folder_is_not_sent_to_another_address(home: Path) -> None:
    _write(home)
    with pytest.raises(Unauthorized, match=r"https://elsewhere\.example"):
        find_service("https://elsewhere.example")
    assert find_service("http://127.0.0.1:8321/").key == "fdy_home"


def test_address_names_the_folder_and_the_way_out_when_none_is_known(home: Path) -> None:
    with pytest.raises(ServiceUnreachable, match="foundry up") as error:
        find_service()
    assert str(home) in str(error.value)


def test_key_with_odd_characters_is_refused_before_it_is_sent(home: Path) -> None:
    with pytest.raises(Unauthorized, match="fdy_"):
        find_service("http://127.0.0.1:1", "fdy_\u201cquoted\u201d")
