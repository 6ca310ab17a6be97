"""Work on many pictures by several threads, in order, with progress and a stop."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from extensions_lib.errors import CrucibleError

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True)
class Note:
    """Something to say about one picture: why it was passed over, what is wrong with it."""

    name: str
    reason: str


def threads_for(asked: int | None = None) -> int:
    """How many threads decode pictures: as asked, else one for each core, at most 8."""
    return asked or min(8, os.cpu_count() or 1)


def at_once(
    work: Callable[[T], R],
    items: Sequence[T],
    threads: int | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Iterator[tuple[T, R | CrucibleError]]:
    """Each item with what `work` made of it, or its refusal, in the order of the items.

    Only a few items are under way at a time. `stop` ends it after those; other errors pass on.
    """
    waiting: Iterable[T] = iter(items)
    running: deque[tuple[T, Future[R]]] = deque()
    count = threads_for(threads)
    pool = ThreadPoolExecutor(count, thread_name_prefix="pictures")
    try:
        for done in itertools.count(1):
            while len(running) < 2 * count and not (stop and stop.is_set()):
                item = next(iter(waiting), None)
                if item is None:
                    break
                running.append((item, pool.submit(work, item)))
            if not running:
                return
            item, future = running.popleft()
            if stop and stop.is_set() and future.cancel():
                continue
            try:
                result: R | CrucibleError = future.result()
            except CrucibleError as refusal:
                result = refusal
            if on_progress:
                on_progress(done, len(items))
            yield item, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
