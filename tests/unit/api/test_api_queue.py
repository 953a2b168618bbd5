"""The doorbell: quiet when it is broken."""

import socket
import time

import pytest

from api.queue import ring


def test_ring_does_nothing_when_there_is_no_broker() -> None:
    ring(None, "job_x")


@pytest.mark.parametrize("broker_url", ["redis://127.0.0.1:9/0", "nonsense://", "redis://[broken"])
def test_ring_warns_and_comes_back_soon_when_the_broker_is_away(
    broker_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began_at = time.monotonic()
    ring(broker_url, "job_x")
    assert time.monotonic() - began_at < 8
    logged = capsys.readouterr().out
    assert "workers will find the job by themselves" in logged
    assert "job_x" in logged


def test_ring_comes_back_soon_when_the_broker_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and then never says a word
        began_at = time.monotonic()
        ring(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "job_x")
    assert time.monotonic() - began_at < 8
    assert "workers will find the job by themselves" in capsys.readouterr().out
