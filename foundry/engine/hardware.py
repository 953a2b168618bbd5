"""The name of what a number was measured on."""

import platform
from pathlib import Path

import torch


def hardware_name(device: torch.device, threads: int | None = None) -> str:
    """The accelerator's name, or the processor's with the number of threads that computed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    used = torch.get_num_threads() if threads is None else threads
    return f"{_processor()}, {used} thread{'s' if used != 1 else ''}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
