"""The real service for acceptance tests: `foundry up` and workers as processes of their own, on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from demo.corpus import write_jsonl
from foundry.client.client import Foundry
from foundry.spec.resources import Job
from foundry.spec.variant import VariantManifest

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "demo" / "teacher"
TABLET = {"name": "tablet", "max_params": 5_500_000}
WATCH = {"name": "watch", "max_params": 3_700_000}


def spec(dataset_id: str, **changes: Any) -> dict[str, Any]:
    """The demo's job, as short as it can be and still do everything.

    The repairs are the quick ones: the local one is walked through by the demo and by the prune stage's own tests.
    """
    return {
        "teacher": str(TEACHER),
        "data": dataset_id,
        "targets": [TABLET, WATCH],
        "prune": {"calibration_tokens": 2048, "candidates": 1, "repair": ["refit", "rotate"]},
        "distill": {
            "tokens": 3072,
            "sequence_tokens": 128,
            "batch_tokens": 256,
            "checkpoint_steps": 4,
            "learning_rate": 3e-4,
        },
        "evaluate": {"tokens": 1024, "samples": 1},
        "formats": ["safetensors", "gguf:f16", "gguf:q4_k_m"],
        **changes,
    }


def write_data(folder: Path) -> Path:
    """Some standard library text."""
    path = folder / "text.jsonl"
    write_jsonl(path, 400_000)
    return path


def manifests_of(foundry: Foundry, job: Job) -> dict[str, VariantManifest]:
    """A job's variants by their targets."""
    found = (VariantManifest.model_validate(foundry.variants.manifest(v)) for v in job.variant_ids)
    return {manifest.target: manifest for manifest in found}


@contextmanager
def running(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with everything below it, ended at the end: gently first, then not."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([p for p in below if p.is_running()], timeout=20)
        for survivor in alive:
            survivor.kill()
        if process.poll() is None:
            process.kill()
        process.wait(20)


@contextmanager
def service(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Foundry]:
    """`foundry up` in `folder`, and a client that knows its key."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    log = folder / "service.log"
    command = [
        sys.executable, "-m", "foundry.cli", "up", "--home", str(home), "--port", str(free_port()), "--teachers",
        str(TEACHER), *options,
    ]  # fmt: skip
    with running(command, log, environment or {}) as process:
        wait_until(lambda: (home / "url").exists(), process, log)
        with Foundry((home / "url").read_text().strip(), (home / "key").read_text().strip()) as client:
            yield client


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float = 60) -> None:
    """Wait for a condition; fail with the process's own words when it dies or time runs out."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"it did not come up:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runs_under(home: Path) -> list[psutil.Process]:
    """The engine's processes that work below this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "foundry.engine.run" in words and any(str(home) in word for word in words):
            found.append(process)
    return found
