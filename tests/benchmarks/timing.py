"""How the benchmarks take times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

Result = TypeVar("Result")


class Clock:
    """Seconds by name, one entry a round.

    cpu: of this process alone, for a busy machine; right where the work has one thread.
    settle: waits for a device, so that a time has in it what the work left to that.
    """

    def __init__(self, *, cpu: bool = False, settle: Callable[[], object] = lambda: None) -> None:
        self.times: dict[str, list[float]] = {}
        self._settle = settle
        self._now = time.process_time if cpu else time.perf_counter

    def __call__(self, name: str, work: Callable[[], Result]) -> Result:
        """Times the work and gives what it gives."""
        self._settle()
        start = self._now()
        made = work()
        self._settle()
        self.times.setdefault(name, []).append(self._now() - start)
        return made

    def seconds(self, name: str) -> float:
        """The median."""
        return median(self.times[name])

    def ratio(self, name: str, to: str) -> float:
        """Median of the ratios of each round: what slows a whole round down cancels out."""
        pairs = zip(self.times[name], self.times[to], strict=True)
        return median(a / b for a, b in pairs)


def load() -> str:
    """How busy the machine is, for the report: what else ran has made the times longer."""
    if not hasattr(os, "getloadavg"):
        return "load unknown"
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
