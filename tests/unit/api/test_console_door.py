"""Who comes into the console: sessions, what ends them, and requests that other sites would like to make."""

import time

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api import sessions
from foundry.spec.access import PROJECT_SCOPES, Role, Scope
from tests.serving import Serving
from tests.unit.api.browsing import Browser


@pytest.fixture
def browser(app: Flask, serving: Serving) -> Browser:
    return Browser(app, serving.key)


def test_signing_in_leads_to_where_the_reader_wanted_to_be(app: Flask, serving: Serving) -> None:
    reader = Browser(app)
    answer = reader.get("/jobs?status=failed")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in?then=/jobs?status%3Dfailed")
    assert 'value="/jobs?status=failed"' in reader.get(answer.headers["Location"]).text
    assert reader.sign_in(serving.key, then="/jobs?status=failed").headers["Location"] == "/jobs?status=failed"


def test_signing_in_never_leads_to_another_site(app: Flask, serving: Serving) -> None:
    for then in ("//evil.example", "/\\evil.example", "https://evil.example/", "evil", "/a\r\nb"):
        assert Browser(app).sign_in(serving.key, then=then).headers["Location"] == "/", then


def test_a_wrong_key_is_refused_in_words_and_not_repeated(app: Flask, serving: Serving) -> None:
    for key in ("", "fdy_wrong", f"fdy_{'0' * 24}_{'0' * 64}", "<script>", "x" * 100_000):
        reader = Browser(app)
        answer = reader.sign_in(key)
        assert answer.status_code == 401
        assert ("give a key" if not key else "wrong, expired or revoked") in answer.text
        assert not key or key not in answer.text
        assert reader.get("/jobs").status_code == 303


def test_the_cookie_is_closed_to_scripts_and_other_sites_and_secure_behind_tls(app: Flask, serving: Serving) -> None:
    reader = Browser(app)
    reader.get("/sign-in")
    plain = reader.post("/sign-in", key=serving.key).headers["Set-Cookie"]
    assert "HttpOnly" in plain and "SameSite=Lax" in plain and "Secure" not in plain
    assert serving.key not in plain
    behind = app.test_client().get("/sign-in", headers={"X-Forwarded-Proto": "https"}).headers["Set-Cookie"]
    assert "Secure" in behind


def test_a_session_ends_with_its_time(browser: Browser) -> None:
    with browser.client.session_transaction() as session:
        session["began_at"] = time.time() - sessions.LIVES_S - 1
    assert browser.get("/jobs").status_code == 303
    answer = browser.post("/keys", name="late")
    assert (answer.status_code, "Nothing was changed" in answer.text) == (401, True)


def test_a_session_ends_with_its_key_and_by_signing_out(app: Flask, serving: Serving, browser: Browser) -> None:
    other = Browser(app, serving.key)
    assert other.post("/sign-out").status_code == 303
    assert other.get("/jobs").status_code == 303
    assert browser.get("/jobs").status_code == 200
    serving.memory.keys.revoke(serving.project, serving.memory.keys.authenticate(serving.key).id)
    assert browser.get("/jobs").status_code == 303
    assert browser.client.get("/v1/targets").status_code == 401


def test_a_session_follows_the_role_of_its_member(app: Flask, serving: Serving) -> None:
    memory, project = serving.memory, serving.project
    member = memory.members.create(project, "ada", Role.EDITOR)
    reader = Browser(app, memory.keys.create(project, "ada", PROJECT_SCOPES, member_id=member.id)[1])
    assert reader.post("/targets", name="kiosk", limit="max_params", amount="1e6").status_code == 303
    memory.members.set_role(project, member.id, Role.VIEWER)
    assert reader.post("/targets", name="kiosk2", limit="max_params", amount="1e6").status_code == 403


def test_a_forged_cookie_opens_nothing(app: Flask, serving: Serving) -> None:
    forger = Flask("forger")
    forger.secret_key = "guessed"
    forger.session_interface = app.session_interface
    with forger.test_request_context():
        serializer = app.session_interface.get_signing_serializer(forger)  # type: ignore[attr-defined]
        key_id = serving.memory.keys.authenticate(serving.key).id
        cookie = serializer.dumps({"key_id": key_id, "began_at": time.time()})
    client = app.test_client()
    client.set_cookie("foundry_session", cookie)
    assert client.get("/v1/targets").status_code == 401
    assert client.get("/jobs").status_code == 303


def test_a_change_from_another_site_is_refused(browser: Browser, serving: Serving) -> None:
    for word in ("", "guessed", browser.csrf + "x"):
        answer = browser.client.post("/keys", data={"csrf": word, "name": "stolen"})
        assert (answer.status_code, "nothing was changed" in answer.text) == (403, True)
    assert [key.name for key in serving.memory.keys.list(serving.project).data] == ["test"]
    assert browser.client.post("/sign-out").status_code == 403


def test_a_session_reads_the_api_and_never_writes_it(browser: Browser, serving: Serving) -> None:
    job = serving.submit()
    answer = browser.client.get(f"/v1/customization/jobs/{job.id}")
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    for method, path in [("POST", f"/v1/customization/jobs/{job.id}/cancel"), ("PUT", "/v1/aliases/x")]:
        assert browser.client.open(path, method=method, json={"variant_id": "x"}).status_code == 401
    assert serving.memory.jobs.get(serving.project, job.id).status == "queued"


def test_a_key_in_the_header_counts_more_than_a_session(app: Flask, serving: Serving, browser: Browser) -> None:
    narrow = serving.memory.keys.create(serving.project, "narrow", {Scope.TARGETS_READ})[1]
    bearer = {"Authorization": f"Bearer {narrow}"}
    assert browser.client.get("/v1/customization/jobs", headers=bearer).status_code == 403
    assert browser.client.get("/v1/targets", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_every_page_runs_only_our_own_scripts_and_loads_nothing_from_elsewhere(browser: Browser) -> None:
    for path in ("/", "/jobs/new", "/nowhere", "/sign-in", "/compare"):
        answer = browser.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert " style=" not in answer.text and "<style" not in answer.text
        assert " onclick" not in answer.text and "javascript:" not in answer.text
        assert "http://" not in answer.text.replace("http://www.w3.org", "") and 'src="//' not in answer.text


def test_a_program_that_is_lost_still_gets_a_problem_document(anonymous: FlaskClient) -> None:
    assert anonymous.get("/nowhere").content_type == "application/problem+json"
    assert anonymous.get("/nowhere", headers={"Accept": "text/html"}).content_type.startswith("text/html")
    assert anonymous.get("/v1/nowhere", headers={"Accept": "text/html"}).content_type == "application/problem+json"
