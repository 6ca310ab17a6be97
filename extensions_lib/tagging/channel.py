"""A bounded queue between two stages that can be ended from either side."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """At most `size` things on their way; `put` waits while it is full, `get` while it is empty.

    `writers` says how many stages put into it; it has ended when all of them have called `finish`.
    """

    def __init__(self, size: int, writers: int = 1) -> None:
        self._size, self._writers = size, writers
        self._things: deque[T] = deque()
        self._change = threading.Condition()
        self._aborted = False

    def put(self, thing: T) -> bool:
        """False once it is aborted: nobody will take the thing."""
        with self._change:
            self._change.wait_for(lambda: self._aborted or len(self._things) < self._size)
            if not self._aborted:
                self._things.append(thing)
                self._change.notify_all()
            return not self._aborted

    def get(self, most: int = 1) -> list[T]:
        """Waits for one thing and takes what else is there, up to `most`; empty at the end."""
        with self._change:
            self._change.wait_for(lambda: self._things or self._aborted or self._writers <= 0)
            if self._aborted:
                return []
            taken = [self._things.popleft() for _ in range(min(most, len(self._things)))]
            self._change.notify_all()
            return taken

    def finish(self) -> None:
        """One writer has put its last thing."""
        with self._change:
            self._writers -= 1
            self._change.notify_all()

    def abort(self) -> None:
        """Drops what is on its way and lets everybody go."""
        with self._change:
            self._aborted = True
            self._things.clear()
            self._change.notify_all()
