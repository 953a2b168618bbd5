"""Keep freed memory instead of giving it back to the kernel after every tensor.

glibc unmaps large blocks as soon as they are free. A training step frees and asks for the same blocks again, and pays a
page fault for each 4 KiB of them: on a small model that is up to half of the step's time.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc refuses more (HEAP_MAX_SIZE / 2); larger blocks are rare and the fault is then small beside the work."""


def keep_freed_memory() -> bool:
    """Whether the allocator took the advice; other C libraries than glibc do without."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
