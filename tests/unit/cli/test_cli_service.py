"""Commands that talk to a service, in this process, against the real app on loopback."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import structlog
import typer
from flask import Flask

from api.app import create_app
from api.state import State
from foundry.cli import app
from foundry.client.home import Address, Config, config_file, read_config, write_config
from foundry.spec.access import Scope
from foundry.store.settings import Settings
from tests.checkpoints import write_checkpoint
from tests.unit.cli.conftest import Command


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOUNDRY_URL", "FOUNDRY_KEY", "FOUNDRY_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FOUNDRY_CONFIG", str(tmp_path / "config.toml"))


@pytest.fixture
def served(tmp_path: Path, sqlite_url: str) -> Flask:
    return create_app(Settings(home=tmp_path, database_url=sqlite_url, teacher_roots=(tmp_path,)))


@pytest.fixture
def memory(served: Flask) -> State:
    state: State = served.extensions["foundry"]
    return state


@pytest.fixture
def address(tmp_path: Path, served: Flask, memory: State) -> Iterator[Address]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # its lines are not the command's output
    write_checkpoint(tmp_path / "teacher")
    _, key = memory.keys.create(memory.keys.ensure_default_project(), "test")
    server = make_server("127.0.0.1", 0, served, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Address(f"http://127.0.0.1:{server.server_port}", key)
    server.shutdown()
    thread.join()
    server.server_close()
    memory.database.close()
    structlog.reset_defaults()


@pytest.fixture
def logged_in(foundry: Command, address: Address) -> Command:
    assert foundry("login", address.url, "--key", address.key).code == 0
    return foundry


def test_login_keeps_a_profile_that_only_its_owner_can_read(foundry: Command, address: Address) -> None:
    assert foundry("login", address.url, "--name", "work", "--key", address.key).code == 0
    assert config_file().stat().st_mode & 0o777 == 0o600
    assert read_config() == Config("work", {"work": address})
    me = json.loads(foundry("whoami", "--json").out)
    assert me["service"] == address.url and "jobs:write" in me["scopes"]
    assert foundry("--profile", "work", "jobs").code == 0
    refused = foundry("--profile", "other", "jobs")
    assert refused.code == 1 and "known: work" in refused.err
    listed = foundry("profiles").out
    assert "work" in listed and address.key not in listed
    assert foundry("logout", "work").code == 0 and read_config() == Config(None, {})


def test_login_keeps_nothing_when_the_key_is_refused(foundry: Command, address: Address) -> None:
    assert foundry("login", address.url, "--key", "fdy_wrong").code == 4
    assert not config_file().exists()


def test_a_profile_is_never_sent_elsewhere_than_to_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from foundry.client.home import find_service
    from foundry.errors import Unauthorized

    write_config(Config("work", {"work": Address("https://a.example", "fdy_a")}))
    assert find_service() == Address("https://a.example", "fdy_a")
    with pytest.raises(Unauthorized):
        find_service("https://b.example")
    monkeypatch.setenv("FOUNDRY_URL", "https://b.example")
    with pytest.raises(Unauthorized):
        find_service()
    assert find_service(profile="work") == Address("https://a.example", "fdy_a")


def test_a_job_is_estimated_submitted_steered_cloned_and_retried(logged_in: Command, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "one"}\n')
    dataset = logged_in("datasets", "upload", data)
    assert dataset.code == 0 and "only 1 documents" in dataset.err
    dataset_id = dataset.out.split()[0]
    model = logged_in("models", "add", tmp_path / "teacher").out.split()[-1]
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"teacher: {model}\ndata: {dataset_id}\ntargets: [{{name: kiosk, max_params: 20e3}}]\n")
    estimate = logged_in("estimate", spec).out
    assert "kiosk" in estimate and "at least" in estimate and "unknown until" in estimate
    job = logged_in("submit", spec).out.strip()
    assert logged_in("pause", job).out == f"{job} paused\n"
    assert logged_in("resume", job).out == f"{job} queued\n"
    cloned = logged_in("clone", job, "--set", "distill.tokens=5e3", "--set", "seed=7").out.strip()
    shown = {one["id"]: one["spec"] for one in json.loads(logged_in("jobs", "--json").out)}
    assert (shown[cloned]["distill"]["tokens"], shown[cloned]["seed"], shown[job]["seed"]) == (5000, 7, 0)
    assert logged_in("retry", job).code == 1
    logged_in("cancel", job)
    assert logged_in("retry", job).out.startswith("job_")
    assert "submitted" in logged_in("logs", job).out
    assert logged_in("clone", job, "--set", "nonsense").code == 2
    assert "no such" not in logged_in("usage").out and "jobs not ended" in logged_in("usage").out


@pytest.mark.parametrize(
    "command",
    [
        ("datasets", "list"), ("models", "list"), ("variants", "list"), ("aliases", "list"), ("keys", "list"),
        ("webhooks", "list"), ("evaluations", "list"), ("members", "list"), ("projects", "list"), ("audit",), ("jobs",),
        ("profiles",), ("usage",), ("whoami",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_list_is_a_table_for_people_and_json_for_programs(logged_in: Command, command: tuple[str, ...]) -> None:
    assert logged_in(*command).code == 0
    assert json.loads(logged_in(*command, "--json").out) is not None


def test_an_evaluation_is_begun_shown_and_deleted_at_the_command_line(logged_in: Command, tmp_path: Path) -> None:
    model = logged_in("models", "add", tmp_path / "teacher").out.split()[-1]
    made = json.loads(logged_in("evaluate", model, "--tasks", "gsm8k", "--limit", "5", "--json").out)
    assert (made["spec"]["tasks"], made["spec"]["limit"]) == (["gsm8k"], 5)
    assert made["id"] in logged_in("evaluations", "list").out
    assert "0/1" in logged_in("evaluations", "show", made["id"]).out
    for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert logged_in("evaluations", verb, made["id"]).out == f"{made['id']} {status}\n"
    watched = logged_in("watch", made["id"])
    assert watched.code == 1 and "was cancelled" in watched.err
    assert json.loads(logged_in("evaluations", "delete", made["id"], "--json").out) == {"deleted": made["id"]}
    refused = logged_in("evaluate", model, "--format", "gguf:q4_k_m")
    assert refused.code == 1 and "/format" in refused.err
    assert "the service's operator decides" in logged_in("evaluate", model, "--allow-code").err.replace("\n", " ")
    assert logged_in("report", "job_none").code == 1


def test_every_command_speaks_json() -> None:
    """But those that stay at work until they are stopped."""
    silent = [
        " ".join(path)
        for path, command in _commands(typer.main.get_command(app), ())
        if path not in (("up",), ("serve",)) and not any("--json" in p.opts for p in command.params)
    ]
    assert silent == []


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


def test_keys_and_webhooks_are_made_at_the_command_line(logged_in: Command) -> None:
    made = json.loads(logged_in("keys", "create", "build", "--scope", "jobs:read", "--days", "1", "--json").out)
    assert made["scopes"] == ["jobs:read"] and made["expires_at"]
    assert logged_in("keys", "rotate", made["id"]).out.startswith("fdy_")
    assert logged_in("keys", "revoke", made["id"]).code == 0
    hook = json.loads(logged_in("webhooks", "create", "https://example.org/x", "--json").out)
    assert hook["secret"].startswith("whsec_")
    assert logged_in("webhooks", "test", hook["id"]).code == 0
    assert "webhook.test" in logged_in("webhooks", "deliveries", hook["id"]).out
    assert logged_in("webhooks", "create", "https://127.0.0.1/").code == 1


def test_members_and_their_keys_are_kept_at_the_command_line(logged_in: Command) -> None:
    ada = logged_in("members", "add", "ada@example.org", "viewer").out.strip()
    key = logged_in("keys", "create", "ada's", "--member", ada, "--json").out
    assert json.loads(key)["member_id"] == ada and "jobs:write" not in json.loads(key)["scopes"]
    assert "editor" in logged_in("members", "role", ada, "editor").out
    refused = logged_in("members", "role", ada, "king")
    assert refused.code == 1 and "/role" in refused.err
    assert "access.set_role" in logged_in("audit", "--object", ada).out
    assert logged_in("members", "remove", ada).err == f"removed {ada}\n"
    assert ada not in logged_in("members", "list").out


def test_an_operator_makes_projects_and_sets_their_quotas_at_the_command_line(
    foundry: Command, address: Address, memory: State
) -> None:
    _, key = memory.keys.create(memory.keys.ensure_default_project(), "operator", set(Scope))
    foundry("login", address.url, "--key", key)
    made = json.loads(foundry("projects", "create", "fab", "--json").out)
    project = made["project"]["id"]
    assert made["admin_key"]["key"].startswith("fdy_")
    foundry("projects", "quota", project, "--active-jobs", "5", "--stored-bytes", "50e9")
    shown = foundry("projects", "quota", project, "--active-jobs", "none", "--json").out
    assert (json.loads(shown)["quota"]["active_jobs"], json.loads(shown)["quota"]["stored_bytes"]) == (None, 50 * 10**9)
    assert "50,000,000,000" in foundry("projects", "list").out
    refused = foundry("projects", "quota", project, "--running-jobs", "few")
    assert refused.code == 2 and "--running-jobs" in refused.err and "'few'" in refused.err


def test_completion_is_offered_for_the_shell(foundry: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown = foundry("--show-completion", "bash")
    assert shown.code == 0 and "_FOUNDRY_COMPLETE" in shown.out.upper().replace("-", "_")
