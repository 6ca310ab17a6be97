"""Long work for many windows: jobs stand in line, run in a thread and report as they go."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from extensions_lib.errors import CrucibleError, Stopped

POLL_SECONDS = 0.1

Tell = Callable[[Any], None]
Job = Callable[[Tell, threading.Event], Any]  # tells its progress, looks at Stop, gives its result


@dataclass(frozen=True)
class Update:
    """How a job stands: its place in line, its progress, or how it ended."""

    state: Literal["waiting", "loading", "working", "done", "stopped", "failed"]
    ahead: int = 0
    progress: Any = None
    result: Any = None
    message: str = ""


class Jobs:
    """A line of jobs, of which one runs at a time; each window has one."""

    def __init__(self) -> None:
        self._line: list[object] = []
        self._line_lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    def stop(self, window: str) -> None:
        """Asks this window's job to stop."""
        if event := self._stops.get(window):
            event.set()

    def run(self, window: str, job: Job) -> Iterator[Update]:
        """Waits for its turn, then runs; yields an Update whenever something changed.

        Closing the iterator (the window went away) stops the job; so does a Stop that comes
        before the first of them is asked for.
        """
        stop = self._stops[window] = threading.Event()
        return self._updates(window, job, stop)

    def _updates(self, window: str, job: Job, stop: threading.Event) -> Iterator[Update]:
        ticket = object()
        with self._line_lock:
            self._line.append(ticket)
        started = False
        try:
            for ahead in self._wait(ticket, stop):
                yield Update("waiting", ahead=ahead)
            if stop.is_set():
                yield Update("stopped")
                return
            yield Update("loading")
            news: queue.Queue[Update] = queue.Queue()
            arguments = (job, stop, news, ticket)
            threading.Thread(target=self._work, args=arguments, daemon=True).start()
            started = True
            yield from newest(news)
        finally:
            stop.set()
            if self._stops.get(window) is stop:
                del self._stops[window]
            if not started:
                self._leave(ticket)

    def _wait(self, ticket: object, stop: threading.Event) -> Iterator[int]:
        """Yields the number of jobs ahead whenever it changes, until it is this one's turn."""
        told = 0
        while not stop.is_set():
            with self._line_lock:
                ahead = self._line.index(ticket)
            if ahead == 0:
                return
            if ahead != told:
                told = ahead
                yield ahead
            stop.wait(POLL_SECONDS)

    def _leave(self, ticket: object) -> None:
        with self._line_lock:
            self._line.remove(ticket)

    def _work(
        self, job: Job, stop: threading.Event, news: queue.Queue[Update], ticket: object
    ) -> None:
        """The job itself, in its thread. The place in line is given up only when it truly ended."""
        try:
            result = job(lambda told: news.put(Update("working", progress=told)), stop)
            last = Update("done", result=result)
        except Stopped:
            last = Update("stopped")
        except CrucibleError as problem:
            last = Update("failed", message=str(problem))
        except Exception as bug:
            traceback.print_exc()
            reason = f"{type(bug).__name__}: {bug}"
            last = Update("failed", message=f"{reason} (the console shows where it happened)")
        finally:
            self._leave(ticket)
        news.put(last)


def newest(news: queue.Queue[Update]) -> Iterator[Update]:
    """Yields updates until the one that ends the job; skips progress that is already outdated."""
    while True:
        update = news.get()
        while update.state == "working":
            try:
                update = news.get_nowait()
            except queue.Empty:
                break
        yield update
        if update.state != "working":
            return
