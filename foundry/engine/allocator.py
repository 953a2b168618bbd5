"""Whether the C library keeps freed memory or gives it back to the kernel.

glibc unmaps large blocks as soon as they are free. A training step frees and asks for the same blocks again, and pays a
page fault for each 4 KiB of them: on a small model that is up to half of the step's time. Left alone, glibc counts as
large what is larger than any block unmapped so far, up to 32 MiB: the weights of a layer then lie in a heap with holes,
which is larger than what is in it.
"""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc refuses more (HEAP_MAX_SIZE / 2); larger blocks are rare and the fault is then small beside the work."""
_RETURNED = 4 << 20
"""Of this size on, blocks go back as soon as they are free: weights of a large layer do, most activations do not."""


def keep_freed_memory() -> bool:
    """Whether the allocator took the advice; other C libraries than glibc do without."""
    return _advise(trim=2**31 - 1, mmap=_LARGEST_MMAP_THRESHOLD)


def return_freed_memory() -> None:
    """The reverse, for work whose peak counts: large blocks go back from now on, and what is free now goes at once.

    The holes between what is used, too: for the borders between parts of the work, not for within them.
    """
    if _advise(trim=8 * _RETURNED, mmap=_RETURNED) and (trim := _of_glibc("malloc_trim")):
        trim(0)


def _advise(*, trim: int, mmap: int) -> bool:
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_M_TRIM_THRESHOLD, trim)) and bool(mallopt(_M_MMAP_THRESHOLD, mmap))


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
