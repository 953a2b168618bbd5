"""Runs code that a model wrote: in a process of its own, with little time and memory, an empty folder and no network.

The network is taken away by the kernel (a network namespace with nothing in it). Where the kernel does not give one, no
code is run. This keeps a benchmark's programs from harm by accident; it is no prison for code that was written to
attack the machine: run untrusted models in a container.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache

TIMEOUT_S = 10.0
MEMORY_BYTES = 512 * 2**20
_FILE_BYTES = 2**20
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000


def passes(program: str, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> bool:
    """Whether the program ends by itself, in time and without an error. Nothing that it prints is kept."""
    with tempfile.TemporaryDirectory(prefix="foundry-code-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CONFINED.format(memory=memory_bytes, cpu=int(timeout_s) + 1)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
            env={"PATH": "", "HOME": folder, "TMPDIR": folder}, start_new_session=True,
        )  # fmt: skip
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=timeout_s)
            return process.returncode == _PASSED
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started, which is in its process group unless it left on purpose."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def can_confine() -> bool:
    """Whether the kernel gives a process here a network of its own."""
    probe = f"{_UNSHARE}\nraise SystemExit(0)"
    return subprocess.run([sys.executable, "-I", "-S", "-c", probe], capture_output=True, timeout=60).returncode == 0


_PASSED = 77
"""Of a program that reached its end: one that calls exit(0) in the middle has proved nothing."""
_UNSHARE = f"""\
import ctypes
_libc = ctypes.CDLL(None, use_errno=True)
if _libc.unshare({_CLONE_NEWNET}) and _libc.unshare({_CLONE_NEWNET | _CLONE_NEWUSER}):
    raise SystemExit(3)
"""
_CONFINED = (
    _UNSHARE
    + f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({{memory}}, {{memory}}))
resource.setrlimit(resource.RLIMIT_CPU, ({{cpu}}, {{cpu}}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({_FILE_BYTES}, {_FILE_BYTES}))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
exec(compile(sys.stdin.buffer.read(), "answer", "exec"), {{{{"__name__": "__main__"}}}})
os._exit({_PASSED})
"""
)
