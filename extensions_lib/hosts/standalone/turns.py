"""Who may use the model: one thread at a time, in the order in which they asked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from extensions_lib.errors import Stopped

_POLL_SECONDS = 0.1


class Turns:
    """A lock that threads get in the order of asking; the one that has it may ask again.

    A loop that lets go and asks again after each step lets everybody in who waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def turn(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Waits for it. Raises Stopped when `stop` is set first."""
        self._acquire(stop)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, stop: threading.Event | None) -> None:
        me, ticket = threading.get_ident(), object()
        with self._changed:
            if self._owner != me:
                self._line.append(ticket)
                try:
                    while self._owner is not None or self._line[0] is not ticket:
                        if stop is not None and stop.is_set():
                            raise Stopped("Stopped while waiting for another job.")
                        self._changed.wait(_POLL_SECONDS if stop is not None else None)
                    self._owner = me
                finally:
                    self._line.remove(ticket)
                    self._changed.notify_all()
            self._depth += 1

    def _release(self) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()
