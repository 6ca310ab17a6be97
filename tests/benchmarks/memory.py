"""What a benchmark needs to know about memory."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from pathlib import Path

_SHARE = 0.8  # of what is free, at most


def free_memory() -> int:
    """Bytes that a program could have now (Linux)."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    raise OSError("/proc/meminfo does not say what memory is available")


def warm(size: int) -> int:
    """Touches so many bytes of free memory once and frees them; gives how many it were.

    A virtual machine hands free pages back to its host, and the first touch after that costs about
    3 s a GB on some: ten times what a page costs otherwise, and more than what is measured. Do it
    right before an order that takes new memory; after a few seconds the pages are gone again.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    pages = min(size, int(free_memory() * _SHARE)) // page
    if pages:
        with mmap.mmap(-1, pages * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[::page] = b"\1" * pages
    return pages * page


def resident() -> int:
    """Bytes of this process in memory, without what it has freed; its peak counts from now (Linux).

    What was freed and kept by the allocator would otherwise hide what is taken next.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Bytes that this process has had in memory at most, since `resident`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status does not tell {name}")
