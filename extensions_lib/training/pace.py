"""How fast a run goes, its smoothed loss, and what would slow it down."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_STEPS = 30  # over which speed is measured
_SMOOTH = 0.95


class Pace:
    """Times steps; what happens between `rest` and the next step counts for none."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_STEPS)
        self._last = time.monotonic()
        self._weight = self._sum = 0.0

    def begin(self, done: int) -> None:
        """From now on steps are timed; the first after a start or a pause is slower than most."""
        self._last = time.monotonic()

    def rest(self) -> None:
        """Something else than steps was done until now."""
        self._last = time.monotonic()

    def step(self, loss: float) -> None:
        """A step is done; a loss that is no number does not count."""
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now
        if math.isfinite(loss):
            self._sum = _SMOOTH * self._sum + (1 - _SMOOTH) * loss
            self._weight = _SMOOTH * self._weight + (1 - _SMOOTH)

    @property
    def loss(self) -> float | None:
        """The smoothed loss, without the bias of its start."""
        return self._sum / self._weight if self._weight else None

    @property
    def per_second(self) -> float:
        """Steps a second; the first ones, which are slower, do not count once there are others."""
        known = list(self._seconds)
        known = known[1:] if len(known) > 1 else known
        return len(known) / max(1e-9, sum(known))


@contextmanager
def seldom_searched() -> Iterator[None]:
    """While it lasts, what is there now is left out of the search for unreachable objects.

    That takes a program with a model in memory longer than a step, every few steps.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
