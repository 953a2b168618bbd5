"""The name of what a number was measured on."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hardware_name(device: "torch.device") -> str:
    """The accelerator's name, or the processor's with the number of threads that torch computes with."""
    import torch  # late: a device measures a GGUF without it

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name(torch.get_num_threads())


def processor_name(threads: int) -> str:
    """The processor's name with the number of threads that computed."""
    return f"{_processor()}, {threads} thread{'s' if threads != 1 else ''}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
