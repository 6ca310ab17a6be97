"""Long work in a terminal: one line that rewrites itself, and Ctrl+C as Stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LINES_EVERY = 5.0  # seconds between lines of progress where stderr is a file


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Ctrl+C sets the event; a second one ends the program as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def set_it(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, set_it)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Line:
    """One line on stderr that rewrites itself; plain lines now and then where it is a file."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._open = False

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            print(file=sys.stderr)

    def show(self, line: str) -> None:
        """Says how it stands."""
        if sys.stderr.isatty():
            self._open = True
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._last >= _LINES_EVERY:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def count(self, done: int, total: int) -> None:
        """Says how much is done, and the time left at this rate."""
        from extensions_lib.ui.pieces import clock

        spent = time.monotonic() - self._started
        left = f"  {clock(spent / done * (total - done))} left" if done and spent > 1 else ""
        self.show(f"{done}/{total}{left}")
