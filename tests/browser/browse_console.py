"""The console in a real browser: a job from signing in to a verified download, and everything that gets in the way."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Reader
from tests.integration.cli.upped import Service

TEACHER = str(Path(__file__).parents[2] / "demo" / "teacher")
LONG_MS = 60_000
_NOTE_LATENESS = """() => {
  window.late = [];
  const note = (item) => window.late.push(Date.now() - Date.parse(item.querySelector("time").dateTime));
  new MutationObserver((changes) => {
    for (const change of changes) change.addedNodes.forEach(note);
    if (window.late.length >= 8) document.body.dataset.enough = "yes";
  }).observe(document.getElementById("events"), { childList: true });
}"""
"""How many milliseconds after its moment an event is on the page."""


def upload(page: Any, file: Path) -> str:
    """The id of the dataset that a file became."""
    page.goto("/datasets")
    page.set_input_files("#file", file)
    page.click("text=Upload and check")
    page.wait_for_url(re.compile(r"/datasets/ds_\w+"))
    return str(page.url.rpartition("/")[2])


def fill_in(page: Any, dataset: str, name: str) -> None:
    page.goto(f"/jobs/new?data={dataset}")
    page.fill("#teacher", TEACHER)
    page.fill("#name", name)
    page.click("summary:has-text('A device of your own')")
    page.fill("[name='own.name']", "kiosk")
    page.fill("[name='own.amount']", "4e6")


def submit(page: Any, dataset: str, name: str) -> str:
    """The id of a new job."""
    fill_in(page, dataset, name)
    page.click("text=Submit the job")
    page.wait_for_url(re.compile(r"/jobs/job_\w+"))
    return str(page.url.rpartition("/")[2])


def test_a_job_from_signing_in_to_a_verified_download(reader: Reader, data_file: Path, tmp_path: Path) -> None:
    page = reader.page
    page.goto("/jobs/new")
    page.fill("#key", "fdy_wrong")
    page.press("#key", "Enter")
    assert "wrong, expired or revoked" in page.inner_text("#key-wrong")
    page.fill("#key", reader.key)
    page.press("#key", "Enter")
    page.wait_for_url(f"{reader.url}/jobs/new")
    reader.wrong.clear()  # Chromium notes the 401 of the wrong key as an error
    dataset = upload(page, data_file)
    fill_in(page, dataset, "steps=40 delay=0.15")
    page.wait_for_selector("#glance article")
    page.wait_for_selector("#estimate >> text=kiosk")
    page.fill("[name='own.amount']", "10")
    page.wait_for_selector("#estimate >> text=cannot be met")
    page.fill("[name='own.amount']", "4e6")
    page.wait_for_selector("#estimate >> text=reachable")
    page.click("text=Submit the job")
    page.wait_for_url(re.compile(r"/jobs/job_\w+"))
    page.wait_for_selector("#plots canvas", timeout=LONG_MS)
    assert "nats a token" in page.get_attribute("#plots .plot", "aria-label")
    page.evaluate(_NOTE_LATENESS)
    page.wait_for_selector("body[data-enough]", timeout=LONG_MS)
    late = sorted(page.evaluate("window.late"))
    print(f"events were on the page after {late[len(late) // 2]:.0f} ms (median), {late[-1]:.0f} ms at most")
    assert late[len(late) // 2] < 1000
    page.reload()  # in the middle: everything is there again, and goes on
    page.wait_for_selector("#plots canvas")
    page.wait_for_selector("#status >> text=succeeded", timeout=LONG_MS)
    assert page.locator("#events li").count() > 40
    numbers = page.eval_on_selector_all("#events li", "items => items.map((item) => Number(item.dataset.seq))")
    assert numbers == sorted(set(numbers))
    page.click("section:has(h2:text('Variants')) a:has-text('kiosk')")
    row = page.locator("tr:has-text('model.safetensors')")
    with page.expect_download() as download:
        row.locator("a").click()
    content = Path(download.value.path()).read_bytes()
    assert hashlib.sha256(content).hexdigest() == row.locator("code").inner_text()


def test_a_variant_is_evaluated_and_its_page_says_so(reader: Reader, data_file: Path) -> None:
    page = reader.sign_in()
    submit(page, upload(page, data_file), "steps=1 then=evaluated")
    page.wait_for_selector("#status >> text=succeeded", timeout=LONG_MS)
    page.click("section:has(h2:text('Variants')) a:has-text('kiosk')")
    page.click(".head a:has-text('Evaluate')")
    page.fill("#name", "by hand")
    page.click("text=Queue the evaluation")
    page.wait_for_url(re.compile(r"/evaluations/eval_\w+"))
    page.wait_for_selector("#panel >> text=succeeded", timeout=LONG_MS)  # without a reload
    assert "46.1% to 53.9%" in page.inner_text("#panel")
    page.click("dl a[href^='/variants/']")
    assert page.locator("tr:has-text('by hand') .pill.succeeded").count() == 1


def test_another_job_is_paused_resumed_and_cancelled(reader: Reader, data_file: Path) -> None:
    page = reader.sign_in()
    submit(page, upload(page, data_file), "steps=2000 delay=0.1")
    page.wait_for_selector("#status >> text=running", timeout=LONG_MS)
    page.click("button:has-text('Pause')")
    page.wait_for_selector("#status >> text=paused", timeout=LONG_MS)
    page.click("button:has-text('Resume')")
    page.wait_for_selector("#status >> text=running", timeout=LONG_MS)
    page.click("summary:has-text('Cancel')")
    page.click("button:has-text('Cancel the job')")
    page.wait_for_selector("#status >> text=cancelled", timeout=LONG_MS)
    assert page.locator("button:has-text('Run it again')").count() == 1


def test_a_double_press_and_the_back_button_make_one_job(reader: Reader, data_file: Path) -> None:
    page = reader.sign_in()
    dataset = upload(page, data_file)
    fill_in(page, dataset, "steps=1 once")
    page.dblclick("text=Submit the job")
    page.wait_for_url(re.compile(r"/jobs/job_\w+"))
    first = page.url
    page.go_back()
    page.wait_for_selector("#job-form")
    page.goto("/jobs")
    assert page.locator("tbody tr:has-text('steps=1 once')").count() == 1
    page.goto(first)


def test_what_was_typed_outlives_a_reload_and_the_end_of_the_session(reader: Reader, data_file: Path) -> None:
    page = reader.sign_in()
    dataset = upload(page, data_file)
    page.goto("/jobs/new")
    page.select_option("#data", dataset)
    page.fill("#teacher", TEACHER)
    page.check("input[value=laptop]")
    page.fill("#name", "draft")
    page.reload()
    assert (page.input_value("#name"), page.input_value("#data")) == ("draft", dataset)
    assert page.is_checked("input[value=laptop]")
    reader.context.clear_cookies()
    page.fill("#name", "draft 2")
    page.wait_for_selector("#estimate >> text=Your session has ended")
    page.click("text=Submit the job")
    page.wait_for_selector("text=Nothing was changed")
    page.click("a:has-text('Sign in')")
    page.fill("#key", reader.key)
    page.press("#key", "Enter")
    page.goto("/jobs/new")
    assert (page.input_value("#name"), page.is_checked("input[value=laptop]")) == ("draft 2", True)
    reader.wrong.clear()  # the 401s


def test_everything_works_without_scripts(chromium: Any, service: Service, data_file: Path) -> None:
    reader = Reader(chromium, service, java_script_enabled=False, viewport={"width": 390, "height": 800})
    page = reader.sign_in()
    dataset = upload(page, data_file)
    fill_in(page, dataset, "steps=1 plain")
    page.click("button:has-text('Estimate')")
    page.wait_for_selector("#estimate >> text=kiosk")
    page.click("text=Submit the job")
    page.wait_for_url(re.compile(r"/jobs/job_\w+"))
    assert "UTC" in page.inner_text("#events")
    assert reader.wrong == [] and reader.elsewhere == []
    reader.context.close()


def test_a_keyboard_is_enough(chromium: Any, service: Service) -> None:
    reader = Reader(chromium, service, viewport={"width": 390, "height": 800})
    page = reader.sign_in()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"
    page.focus(".menu-button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#menu:popover-open")
    page.keyboard.press("Tab")
    for _ in range(12):
        if page.evaluate("document.activeElement.textContent") == "Datasets":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{reader.url}/datasets")
    reader.context.close()


@pytest.mark.parametrize("address", ["/jobs/job_unknown", "/variants/%3Cscript%3E", "/nowhere"])
def test_what_is_not_there_is_said_with_a_way_on(reader: Reader, address: str) -> None:
    page = reader.sign_in()
    page.goto(address)
    assert page.locator("a:has-text('Go to the overview')").count() == 1
    reader.wrong.clear()  # the 404
