"""The line of jobs: order, stop while waiting and while working, errors, windows that go away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.hosts.base import GenerationRequest, GenerationResult, Progress
from extensions_lib.ui.jobs import Update
from extensions_lib.ui.studio import Studio

WAIT = 30.0


class FakeHost:
    """Runs until told: each job waits for `gate`, or to be among `free`, then ends as `ending`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.free: set[str] = set()
        self.ran: list[str] = []
        self.now = 0
        self.most = 0
        self.ending: BaseException | None = None

    def generate(
        self, request: GenerationRequest, told: Callable[[Progress], None], stop: threading.Event
    ) -> GenerationResult:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            while not self.gate.wait(0.01) and request.prompt not in self.free:
                if stop.is_set():
                    raise Stopped("stopped")
            self.ran.append(request.prompt)
            told(Progress(1, 1, 1, 1))
            if self.ending:
                raise self.ending
            return GenerationResult()
        finally:
            self.now -= 1


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def studio(host: FakeHost) -> Studio:
    return Studio(host)  # type: ignore[arg-type]


class Window(threading.Thread):
    """A window that pressed Generate."""

    def __init__(self, studio: Studio, name: str) -> None:
        super().__init__(daemon=True)
        self.studio, self.name, self.seen = studio, name, []
        self.told = threading.Condition()
        self.start()

    def run(self) -> None:
        for update in self.studio.run(GenerationRequest(self.name), self.name):
            with self.told:
                self.seen.append(update)
                self.told.notify_all()

    def until(self, state: str, ahead: int = 0) -> Update:
        def there() -> Any:
            return next((u for u in self.seen if (u.state, u.ahead) == (state, ahead)), None)

        with self.told:
            assert self.told.wait_for(there, WAIT), (state, self.seen)
            return there()


def test_jobs_run_one_at_a_time_in_their_order(studio: Studio, host: FakeHost) -> None:
    windows = []
    for number, name in enumerate("abc"):
        window = Window(studio, name)
        window.until("waiting" if number else "loading", number)
        windows.append(window)
    host.free.add("a")
    windows[2].until("waiting", 1)
    host.gate.set()
    for window in windows:
        window.until("done")
    assert host.ran == ["a", "b", "c"] and host.most == 1


def test_stop_while_working_and_while_waiting(studio: Studio, host: FakeHost) -> None:
    first = Window(studio, "first")
    first.until("loading")
    second = Window(studio, "second")
    second.until("waiting", 1)
    studio.stop("second")
    second.until("stopped")
    studio.stop("first")
    first.until("stopped")
    studio.stop("nobody")
    host.gate.set()
    third = Window(studio, "third")
    third.until("done")
    assert host.ran == ["third"]


def test_stop_right_after_the_start_counts(studio: Studio, host: FakeHost) -> None:
    updates = studio.run(GenerationRequest("hasty"), "hasty")
    studio.stop("hasty")  # before the first update has been asked for
    assert [update.state for update in updates] == ["stopped"]
    host.gate.set()
    Window(studio, "next").until("done")
    assert host.ran == ["next"]


@pytest.mark.parametrize(
    ("ending", "text"),
    [(CrucibleError("no such thing"), "no such thing"), (ValueError("bug"), "ValueError: bug")],
)
def test_errors_are_told_and_the_line_goes_on(
    studio: Studio,
    host: FakeHost,
    ending: Exception,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host.gate.set()
    host.ending = ending
    assert text in Window(studio, "a").until("failed").message
    # A bug also leaves its traceback on the console; a refusal does not.
    assert ("Traceback" in capsys.readouterr().err) == isinstance(ending, ValueError)
    host.ending = None
    Window(studio, "b").until("done")


def test_a_window_that_goes_away_stops_its_job(studio: Studio, host: FakeHost) -> None:
    updates = studio.run(GenerationRequest("gone"), "gone")
    assert next(updates).state == "loading"
    waiting = Window(studio, "next")
    waiting.until("waiting", 1)
    updates.close()  # type: ignore[attr-defined]
    waiting.until("loading")
    host.gate.set()
    waiting.until("done")
    assert host.ran == ["next"]
