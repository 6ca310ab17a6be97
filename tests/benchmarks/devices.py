"""The device that a benchmark runs on: waiting for it, its memory, what was asked of it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable

import torch

from tests.benchmarks.memory import warm


class Device:
    """ "cpu", or "cuda" with or without a number."""

    def __init__(self, name: str) -> None:
        self.at = torch.device(name)
        self.cuda = self.at.type == "cuda"

    def __str__(self) -> str:
        if not self.cuda:
            return str(self.at)
        known = torch.cuda.get_device_properties(self.at)
        return f"{known.name} ({known.total_memory / (1 << 30):.0f} GB, CUDA {torch.version.cuda})"

    def settle(self) -> None:
        """Waits until all that was asked of it is done."""
        if self.cuda:
            torch.cuda.synchronize(self.at)

    def fresh(self, size: int) -> None:
        """Has the next `size` bytes be new to the process, at the price that they have for a user.

        CUDA: no memory is kept by torch's allocator. On a CPU see `memory.warm`.
        """
        if self.cuda:
            self.settle()
            torch.cuda.empty_cache()
        else:
            warm(size)

    def added(self, work: Callable[[], object]) -> tuple[int, int]:
        """Bytes that tensors take after the work beyond before, and at most meanwhile (CUDA)."""
        gc.collect()
        self.settle()
        before = torch.cuda.memory_allocated(self.at)
        torch.cuda.reset_peak_memory_stats(self.at)
        work()
        self.settle()
        after, peak = (
            torch.cuda.memory_allocated(self.at),
            torch.cuda.max_memory_allocated(self.at),
        )
        return after - before, peak - before

    def calls(self, work: Callable[[], object]) -> Counter[str]:
        """How often the work calls CUDA's runtime, by function."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            work()
            self.settle()
        counts: Counter[str] = Counter()
        for event in seen.events() or ():
            if event.name.startswith("cu"):
                counts[event.name] += 1
        return counts
