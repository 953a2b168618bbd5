"""Every page as people see it: two widths, light and dark, nothing wider than the screen, no serious finding of axe."""

from pathlib import Path
from typing import Any

import pytest

from foundry.spec.variant import Metrics
from tests.browser.browse_console import LONG_MS, submit, upload
from tests.browser.conftest import AXE, SCREENSHOTS, Reader
from tests.integration.cli.upped import Service

PAGES = {
    "overview": "/", "jobs": "/jobs", "new-job": "/jobs/new?from={job}", "job": "/jobs/{job}", "variants": "/variants",
    "variant": "/variants/{variant}", "compare": "/compare", "datasets": "/datasets", "dataset": "/datasets/{dataset}",
    "models": "/models", "model": "/models/{model}", "targets": "/targets", "evaluations": "/evaluations",
    "new-evaluation": "/evaluations/new?model={variant}", "evaluation": "/evaluations/{evaluation}",
    "webhooks": "/webhooks", "webhook": "/webhooks/{webhook}", "keys": "/keys", "members": "/members",
    "audit": "/audit", "usage": "/usage", "missing": "/nowhere",
}  # fmt: skip
LOOKS = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def things(chromium: Any, service: Service, data_file: Path) -> dict[str, str]:
    """One of each, made through the console itself."""
    reader = Reader(chromium, service)
    page = reader.sign_in()
    dataset = upload(page, data_file)
    job = submit(page, dataset, "steps=30 delay=0.02")
    page.wait_for_selector("#status >> text=succeeded", timeout=LONG_MS)
    page.click("section:has(h2:text('Variants')) a:has-text('kiosk')")
    variant = page.url.rpartition("/")[2]
    with service.client() as client:
        client.members.create("ada@example.org", "editor")
        webhook = client.webhooks.create("https://example.com/foundry").id
        evaluation = client.evaluations.wait(client.evaluations.create(model=variant, suite="quick").id).id
        metrics = Metrics(model="safetensors", hardware="Cortex-A76, 4 threads", runtime="x 1", decode_tokens_per_s=21)
        digest = client.variants.get(variant).manifest_sha256
        client.variants.add_measurement(
            variant, metrics, manifest_sha256=digest, context_tokens=64, device="the kiosk in the hall"
        )
        model = client.models.from_folder(str(Path(__file__).parents[2] / "demo" / "teacher"), "demo").id
    reader.context.close()
    return {
        "dataset": dataset, "job": job, "variant": variant, "webhook": webhook, "model": model,
        "evaluation": evaluation,
    }  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_page_fits_and_is_accessible(
    chromium: Any, service: Service, things: dict[str, str], width: int, scheme: str
) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not there: make test-browser fetches it with npm")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    reader = Reader(chromium, service, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, findings = reader.page, []
    page.goto("/sign-in")
    findings += _look(page, "sign-in", width, scheme)
    reader.sign_in()
    for name, address in PAGES.items():
        page.goto(address.format(**things))
        if name in ("job", "compare"):
            page.wait_for_selector("canvas" if name == "job" else "main")
        if name == "new-job":
            page.wait_for_selector("#estimate .outlook")
        findings += _look(page, name, width, scheme)
    assert findings == []
    assert reader.elsewhere == []
    reader.context.close()


def _look(page: Any, name: str, width: int, scheme: str) -> list[str]:
    """What is wrong with a page, and a picture of it."""
    page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
    wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    serious = [
        f"{name} {width} {scheme}: {one['id']} at {one['nodes'][0]['target']}: {one['nodes'][0]['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    return serious + ([f"{name} is {wider} pixels wider than {width}"] if wider > 0 else [])
