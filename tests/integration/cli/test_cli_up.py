"""`foundry up` from outside. A start takes seconds, so a test walks one service through several of its promises."""

import socket
import stat
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.integration.cli.upped import command, up, wait_for

pytestmark = pytest.mark.integration


def test_up_serves_its_home_alone_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with up(tmp_path) as service:
        with service.client() as foundry:
            assert {"laptop", "smartphone"} < {t.name for t in foundry.targets.list()}
        key, url = service.home / "key", (service.home / "url").read_text().strip()
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert str(key) in service.output and url in service.output and "foundry submit" in service.output

        second = _run("up", "--home", str(service.home), "--port", "0")
        assert second.returncode == 1 and f"already up in {service.home}, at {url}" in second.stderr

        children = service.children()
        assert any(c.cmdline()[1:3] == ["-m", "workers.embedded"] for c in children)
        service.process.terminate()
        assert service.process.wait(20) == 0
        assert _gone(children) and not (service.home / "url").exists()


def test_up_replaces_a_key_that_opens_nothing_finds_its_own_api_and_tells_how_a_child_died(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("fdy_from_another_database\n")
    (tmp_path / "api").mkdir()  # in the working directory, where `python -m` looks first
    (tmp_path / "api" / "__init__.py").write_text("raise RuntimeError('not this one')")
    with up(tmp_path, "--no-worker") as service:
        assert "made just now" in service.output
        with service.client() as foundry:
            assert list(foundry.jobs.list()) == []

        children = service.children()
        next(c for c in children if c.cmdline()[1:3] == ["-m", "gunicorn"]).kill()
        assert service.process.wait(20) == 1
        assert _gone(children) and not (service.home / "url").exists()
        assert "the api ended by itself" in service.output and "api.log" in service.output


def test_children_end_when_up_is_killed_and_the_next_start_keeps_the_key(tmp_path: Path) -> None:
    with up(tmp_path, "--no-worker") as service:
        children, key = service.children(), (service.home / "key").read_text()
        service.process.kill()
        service.process.wait(10)
        assert children
        wait_for(lambda: _gone(children))
    with up(tmp_path, "--no-worker") as again, again.client() as foundry:
        assert (again.home / "key").read_text() == key and "made just now" not in again.output
        assert list(foundry.datasets.list()) == []


def test_up_says_which_port_is_taken_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = _run("up", "--home", str(tmp_path), "--port", str(port))
    assert ended.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in ended.stderr and "--port" in ended.stderr
    assert not (tmp_path / "url").exists() and not (tmp_path / "key").exists()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
