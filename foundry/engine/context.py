"""What a stage may use of the world outside: a voice, an ear, a device and a seed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foundry.engine.stopped import Stopped as Stopped
from foundry.spec.lifecycle import EventType, Level, Progress, RunEvent


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Handed to every stage. `emit` takes events, `should_stop` is asked at every step."""

    emit: Callable[[RunEvent], None]
    should_stop: Callable[[], bool] = field(default=lambda: False)
    alive: Callable[[], None] = field(default=lambda: None)
    """Tells the supervisor that work goes on: it takes a run that is silent for long for hung."""
    device: torch.device
    dtype: torch.dtype
    """Of matrix products: bfloat16 where the hardware is fast at it, else float32. Master weights stay float32."""
    seed: int
    micro_batch_divisor: int = 1
    """Micro-batches are to be so many times smaller than what should fit into memory."""
    accelerators: int = 1
    """How many of this machine's a stage may use that can use more than one; `device` is the first of them."""
    benchmarks: Path | None = None
    """The operator's local copies of benchmarks; None leaves them to the hub."""
    may_run_code: bool = False
    """Whether the operator lets benchmarks run code that a model wrote."""

    def heed(self) -> None:
        """For every turn of a long loop: say that work goes on, and raise `Stopped` when asked to stop."""
        self.alive()
        if self.should_stop():
            raise Stopped

    def report(self, type: EventType, message: str, *, level: Level = "info", **data: Any) -> None:
        """Tell the supervisor one thing."""
        self.emit(RunEvent(type=type, message=message, level=level, data=data))

    def progress(self, progress: Progress) -> None:
        """Tell the supervisor how far the stage is."""
        message = f"{progress.stage} {progress.step}/{progress.steps}"
        self.report(EventType.PROGRESS, message, **progress.model_dump(exclude_none=True))


def allowed_by(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `RunContext` that the operator sets: FOUNDRY_BENCHMARKS (a folder) and FOUNDRY_ALLOW_CODE (1)."""
    folder = environment.get("FOUNDRY_BENCHMARKS")
    return {
        "benchmarks": Path(folder) if folder else None,
        "may_run_code": environment.get("FOUNDRY_ALLOW_CODE", "").lower() in ("1", "true", "yes"),
    }


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within this random numbers begin at `seed`; afterwards those of the CPU and of this device go on as before."""
    # Unless told, PyTorch saves those of all devices, and takes memory of every accelerator for it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def choose_device() -> torch.device:
    """The accelerator when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def count_accelerators(device: torch.device) -> int:
    """All that torch sees when the run was given no particular one; CUDA_VISIBLE_DEVICES hides some."""
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs that have it and on CPUs with instructions for it; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32
