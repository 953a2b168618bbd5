"""Whether the C library keeps freed memory or gives it back to the kernel.

glibc unmaps large blocks as soon as they are free. A training step frees and asks for the same blocks again, and pays a
page fault for each 4 KiB of them: on a small model that is up to half of the step's time. Left alone, glibc counts as
large what is larger than any block unmapped so far, up to 32 MiB: the weights of a layer then lie in a heap with holes,
which is larger than what is in it.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc refuses more (HEAP_MAX_SIZE / 2); larger blocks are rare and the fault is then small beside the work."""


_LEAST_RETURNED = 2 << 20


def keep_freed_memory() -> bool:
    """Whether the allocator took the advice; other C libraries than glibc do without."""
    return _advise(trim=2**31 - 1, mmap=_LARGEST_MMAP_THRESHOLD)


def return_freed_memory() -> bool:
    """The reverse, for work whose peak counts: blocks of 2 MiB and more go back as soon as they are free."""
    return _advise(trim=4 * _LEAST_RETURNED, mmap=_LEAST_RETURNED)


def _advise(*, trim: int, mmap: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, trim)) and bool(mallopt(_M_MMAP_THRESHOLD, mmap))
