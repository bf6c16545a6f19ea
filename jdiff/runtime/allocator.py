"""Memory allocator: glibc's malloc keeps freed memory, so that a train step on a CPU does not page-fault it again.

XLA's CPU backend allocates a program's temporary buffer with malloc at each call and frees it afterwards. By default
glibc maps every large block with mmap and unmaps it when it is freed, so each step faults and zeroes gigabytes again:
up to half of a step's time is then spent in the kernel. Kept in the heap, the pages are faulted once. The price: the
process keeps its peak memory until it ends.
"""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h, with the values to set.
M_TRIM_THRESHOLD = (-1, -1)  # bytes free at the heap's top above which it shrinks; -1 as size_t is the largest: never
M_MMAP_MAX = (-4, 0)  # blocks that may be mapped with mmap: none, all come from the heap
M_ARENA_MAX = (-8, 1)  # heaps: one, as the heaps of threads are too small for large blocks, which would be mapped again


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse freed memory instead of returning it to the kernel; the sooner, the more it covers.

    Returns whether it was set: not with another C library (musl, macOS, Windows), nor where GLIBC_TUNABLES already
    tunes malloc.
    """
    if platform.libc_ver()[0] != "glibc" or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in (M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX))
