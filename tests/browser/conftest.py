"""A real service and a real headless Chromium; skipped with a word where there is none. `make test-browser`."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.upped import Service, up
from tests.tiny import write_texts

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
AXE = ROOT / "build" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_RUN = ROOT / "tests" / "browser" / "curved_run.py"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser of this machine, driven by playwright."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser does it")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine; on Debian and Ubuntu: apt-get install chromium")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`foundry up` whose runs are scripted: a real process and protocol, without the hours of a real model."""
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FOUNDRY_RUN_COMMAND", f"{sys.executable} {_RUN}")
        environment.setenv("FOUNDRY_POLL_S", "0.2")
        with up(folder, "--teachers", str(ROOT / "demo" / "teacher")) as running:
            yield running


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "domain.jsonl", documents=300)


class Reader:
    """One person at the console, who hears of everything that goes wrong in the page."""

    def __init__(self, browser: Any, service: Service, **options: Any) -> None:
        self.url = (service.home / "url").read_text().strip()
        self.key = (service.home / "key").read_text().strip()
        self.context = browser.new_context(base_url=self.url, **options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(self.url) else self.elsewhere.append(r.url))

    def sign_in(self) -> Any:
        self.page.goto("/sign-in")
        self.page.fill("#key", self.key)
        self.page.press("#key", "Enter")
        self.page.wait_for_url(f"{self.url}/")
        return self.page


@pytest.fixture
def reader(chromium: Any, service: Service) -> Iterator[Reader]:
    made = Reader(chromium, service, viewport={"width": 1440, "height": 900})
    yield made
    assert made.elsewhere == [] and made.wrong == []
    made.context.close()
