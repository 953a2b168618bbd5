"""A run as its supervisor hears it: events, empty lines, silence."""

import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from foundry.engine.context import RunContext, Stopped
from foundry.engine.run import Voice
from workers.process import RunProcess

MURMURS = """
import time
print("an event", flush=True)
for _ in range(60):
    print(flush=True)
    time.sleep(0.05)
"""


def test_an_empty_line_says_that_the_run_is_alive_and_nothing_else(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with RunProcess([sys.executable, "-c", MURMURS], tmp_path, environment={}, hear=heard.append) as run:
        began = time.monotonic()
        while run.wait(0.05) is None:
            assert time.monotonic() - began < 120
        lasted = time.monotonic() - began
        assert run.silent_s < lasted - 2  # the event came at the beginning, empty lines until the end
    assert heard == [b"an event\n"]


def test_a_run_breathes_only_where_it_has_said_nothing_for_a_while(tmp_path: Path) -> None:
    asked = threading.Event()
    with (tmp_path / "lines").open("w") as lines:
        voice = Voice(lines, asked)
        context = RunContext(
            emit=voice.emit, should_stop=asked.is_set, alive=lambda: voice.breathe(0.2), device=torch.device("cpu"),
            dtype=torch.float32, seed=0,
        )  # fmt: skip
        for _ in range(3):
            context.heed()
        assert (tmp_path / "lines").read_text() == ""
        time.sleep(0.25)
        for _ in range(3):
            context.heed()
        assert (tmp_path / "lines").read_text() == "\n"
        asked.set()
        with pytest.raises(Stopped):
            context.heed()
