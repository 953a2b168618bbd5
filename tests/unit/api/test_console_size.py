"""What the first page weighs when the project has many jobs. What it takes: `make bench-api`."""

import re
from pathlib import Path

from flask import Flask
from sqlalchemy import text

from tests.serving import Serving
from tests.unit.api.browsing import Browser

JOBS = 1_000
CONSOLE = Path(__file__).parents[3] / "api" / "console"


def _fill(serving: Serving, count: int) -> None:
    """As many copies of one ended job, with ids in order."""
    job = serving.submit(name="one of many")
    serving.memory.jobs.cancel(serving.project, job.id)
    columns = [
        "project_id", "name", "status", "reason_code", "reason_message", "spec", "inputs", "stage", "progress",
        "epoch", "fruitless_attempts", "worker", "lease_until", "last_seq", "parent_id", "created_at",
        "started_at", "finished_at",
    ]  # fmt: skip
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)"
    with serving.memory.database.write() as session:
        session.execute(
            text(
                f"{numbers} INSERT INTO jobs (id, {', '.join(columns)}) "
                f"SELECT printf('job_%024d', i), {', '.join(columns)} FROM n, jobs WHERE id = :job"
            ),
            {"count": count, "job": job.id},
        )


def test_pages_are_small_when_there_are_many_jobs(app: Flask, serving: Serving) -> None:
    _fill(serving, JOBS)
    reader = Browser(app, serving.key)
    for path in ("/", "/live", "/jobs", "/jobs?status=cancelled"):
        answer = reader.get(path)
        assert answer.status_code == 200 and "one of many" in answer.text
    page = reader.get("/")
    loaded = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(loaded) == 3  # picture, style sheet, script
    bytes_sent = len(page.data)
    for address in loaded:
        answer = reader.client.get(address, headers={"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip" and "immutable" in answer.headers["Cache-Control"]
        bytes_sent += len(answer.data)
    assert bytes_sent < 100_000, bytes_sent


def test_the_heaviest_page_is_light_too(app: Flask, serving: Serving) -> None:
    """The job page loads the plots; together it stays below a hundred kilobytes as well."""
    job = serving.submit()
    reader = Browser(app, serving.key)
    page = reader.get(f"/jobs/{job.id}")
    names = {Path(address).name for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)} | {"plots.js"}
    assert {"job.js", "uPlot.iife.min.js", "style.css"} <= names
    version = re.search(r"/static/(\w+)/", page.text)
    assert version
    sent = len(page.data)
    for path in (CONSOLE / "static").rglob("*"):
        if path.name in names:
            address = f"/static/{version[1]}/{path.relative_to(CONSOLE / 'static')}"
            sent += len(reader.client.get(address, headers={"Accept-Encoding": "gzip"}).data)
    assert sent < 100_000, sent


def test_what_is_not_ours_stands_under_its_licence_and_nothing_else_is_minified() -> None:
    static = CONSOLE / "static"
    assert "MIT License" in (static / "vendor" / "uplot" / "LICENSE").read_text()
    for path in static.glob("*.js"):
        assert max(map(len, path.read_text().splitlines())) < 300, path


def test_an_asset_is_sent_as_it_is_to_who_cannot_unpack_and_again_only_when_it_changed(app: Flask) -> None:
    client = app.test_client()
    plain = client.get("/static/old/style.css")
    assert "Content-Encoding" not in plain.headers and plain.text.startswith("/*")
    assert plain.headers["Cache-Control"] == "no-cache"
    same = client.get("/static/old/style.css", headers={"If-None-Match": plain.headers["ETag"]})
    assert (same.status_code, same.data) == (304, b"")
    assert client.get("/static/old/../../app.py").status_code == 404
    assert client.get("/static/old/%2e%2e/app.py").status_code == 404
