"""The stages of a run and their threads; `pipeline` says what goes in and what comes out."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.datasets import pictures
from extensions_lib.datasets.at_once import threads_for
from extensions_lib.datasets.journal import Journal
from extensions_lib.errors import FileProblem
from extensions_lib.tagging.channel import Channel
from extensions_lib.tagging.composer import Composer
from extensions_lib.tagging.run import Plan, Progress, Report, Run
from extensions_lib.tagging.scores import Identity, ScoreStore, identity
from extensions_lib.tagging.writer import CaptionWriter, Outcome, Output

if TYPE_CHECKING:
    from extensions_lib.tagging.runners import Runner
    from extensions_lib.tagging.selection import Selection, Sparse

_AT_ONCE = 64  # pictures in one write
_TICK = 0.1  # seconds between looks at progress and Stop
_PATIENCE = 0.7  # seconds that a stopped run waits for what is under way
_WINDOW = 10.0  # seconds over which pictures/s are counted


@dataclass
class _Picture:
    """A picture on its way. `asked` are the places of the models that have no answer kept."""

    path: Path
    name: str  # within the set
    known: Identity
    content: bytes
    is_new: bool  # its content was not known before
    asked: tuple[int, ...] = ()
    prepared: dict[int, Any] = field(default_factory=dict)
    answers: dict[int, Sparse | str] = field(default_factory=dict)

    def said(self) -> list[Sparse | str]:
        """The answers in the order of the models."""
        return [self.answers[place] for place in sorted(self.answers)]


class Work:
    """One run: decode threads → `decoded` → inference → `answered` → writer."""

    def __init__(
        self,
        planned: Plan,
        runners: Sequence[Runner],
        selection: Selection,
        output: Output,
        run: Run,
        store: ScoreStore,
        stop: threading.Event | None,
    ) -> None:
        self.planned, self.runners, self.run, self.store = planned, runners, run, store
        self.selection, self.output = selection, output
        self.composer = Composer(runners, selection, run.join)
        self.stop = stop or threading.Event()
        self.report = Report(
            len(planned.pictures) + len(planned.problems),
            done=len(planned.problems),
            problems=list(planned.problems),
            messages=list(planned.messages),
        )
        threads = min(threads_for(run.decoders), max(1, len(planned.pictures)))
        batch = max(runner.batch for runner in runners)
        self.decoded: Channel[_Picture] = Channel(2 * batch + threads, writers=threads)
        self.answered: Channel[_Picture] = Channel(2 * _AT_ONCE, writers=threads + 1)
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._waiting: Iterator[Path] = iter(planned.pictures)
        self._writing = self._thread(self._write_all, "write")
        self._others = [self._thread(self._infer_all, "infer")]
        self._others += [self._thread(self._decode_all, f"decode-{i}") for i in range(threads)]

    # --- running ------------------------------------------------------------------------------

    def go(self, on_progress: Callable[[Progress], None] | None) -> Report:
        """Runs to the end, or until `stop`; raises what a stage failed with."""
        started, rate = time.monotonic(), _Rate()
        for thread in (self._writing, *self._others):
            thread.start()
        try:
            while self._writing.is_alive():
                self._writing.join(_TICK)
                if on_progress is not None:
                    on_progress(rate.progress(self.report))
                if self.stop.is_set():
                    self._end_early()
                    break
        except BaseException:  # Ctrl+C, or the one who shows progress
            self.stop.set()
            self._end_early()
            raise
        if self.failure is not None:
            raise self.failure
        report = self.report
        report.seconds = time.monotonic() - started
        report.stopped = self.stop.is_set() and report.done < report.total
        report.problems.sort(key=lambda outcome: outcome.picture)
        report.changes.sort(key=lambda outcome: outcome.picture)
        return report

    def _thread(self, work: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                with self._lock:
                    self.failure = self.failure or error
                self._abort()

        # a call into a model cannot be broken off: it must not hold up the end of the program
        return threading.Thread(target=guarded, name=f"tagging-{name}", daemon=True)

    def _abort(self) -> None:
        self.decoded.abort()
        self.answered.abort()

    def _end_early(self) -> None:
        """Lets the writer end what it has in hand, and waits for nobody else."""
        self._abort()
        self._writing.join(_PATIENCE)

    # --- decoding -----------------------------------------------------------------------------

    def _decode_all(self) -> None:
        while not self.stop.is_set():
            with self._lock:
                path = next(self._waiting, None)
            if path is None:
                break
            try:
                picture = self._decode(path)
            except (FileProblem, OSError, MemoryError) as error:
                self._lost(path, error)
                continue
            if not (self.decoded if picture.asked else self.answered).put(picture):
                break
        self.decoded.finish()
        self.answered.finish()

    def _decode(self, path: Path) -> _Picture:
        """What is known of a picture, and what the models that must be asked need of it.

        Raises PictureProblem, OSError.
        """
        name, known = self._name(path), identity(path)
        content, raw = self.store.content(name, known), b""
        if is_new := content is None:
            raw = path.read_bytes()
            content = hashlib.sha256(raw).digest()
        picture = _Picture(path, name, known, content, is_new)
        for place, runner in enumerate(self.runners):
            kept = None if self.run.again else self.store.get(runner.key, content)
            if kept is not None:
                picture.answers[place] = kept
        picture.asked = tuple(i for i in range(len(self.runners)) if i not in picture.answers)
        if picture.asked:
            asked = [self.runners[place] for place in picture.asked]
            sides = [runner.least for runner in asked if runner.least is not None]
            least = max(sides) if len(sides) == len(asked) else None
            image = pictures.open_picture(raw or path.read_bytes(), least=least)
            for place in picture.asked:
                picture.prepared[place] = self.runners[place].prepare(image)
        return picture

    def _name(self, path: Path) -> str:
        return path.relative_to(self.planned.root).as_posix()

    def _lost(self, path: Path, error: BaseException) -> None:
        said = str(error).removeprefix("the picture: ")
        if isinstance(error, OSError):
            said = f"cannot be read ({error.strerror})."
        elif isinstance(error, MemoryError):
            said = "takes more memory than there is."
        outcome = Outcome(path, "problem", problem=f"{self._name(path)}: {said}")
        self._count([outcome])

    # --- inference ----------------------------------------------------------------------------

    def _infer_all(self) -> None:
        waiting: list[list[_Picture]] = [[] for _ in self.runners]
        while taken := self.decoded.get():
            for picture in taken:
                for place in picture.asked:
                    waiting[place].append(picture)
            for place, runner in enumerate(self.runners):
                if len(waiting[place]) >= runner.batch:
                    self._infer(place, waiting[place])
        for place in range(len(self.runners)):
            while waiting[place] and not self.stop.is_set():
                self._infer(place, waiting[place])
        self.answered.finish()

    def _infer(self, place: int, waiting: list[_Picture]) -> None:
        """Asks one model about a batch of those that wait for it."""
        runner = self.runners[place]
        some = waiting[: runner.batch]
        del waiting[: len(some)]
        answers = runner.run([each.prepared.pop(place) for each in some], self.stop.is_set)
        # fewer where it was stopped: the rest is left for another run
        for picture, answer in zip(some, answers, strict=False):
            picture.answers[place] = answer
            if len(picture.answers) == len(self.runners):
                self.answered.put(picture)

    # --- writing ------------------------------------------------------------------------------

    def _write_all(self) -> None:
        """Keeps the answers, and writes captions from them."""
        by_frequency: list[_Picture] = []
        with ExitStack() as stack:
            step = None
            if not self.output.dry_run:
                step = stack.enter_context(Journal(self.planned.root).step(self._title()))
            writer = CaptionWriter(self.planned.root, self.output, self.store, step)
            while some := self.answered.get(_AT_ONCE):
                self._keep(some)
                if self.selection.sort == "frequency":
                    by_frequency += some
                    self.report.done += len(some)
                    continue
                self._count(writer.write([(p.path, self.composer.text(p.said())) for p in some]))
            if by_frequency and not self.stop.is_set() and self.failure is None:
                self._write_by_frequency(writer, by_frequency)

    def _title(self) -> str:
        names = " and ".join(runner.key.name for runner in self.runners)
        return f"Tag {len(self.planned.pictures)} pictures with {names}"

    def _keep(self, some: Sequence[_Picture]) -> None:
        self.report.inferred += sum(bool(p.asked) for p in some)
        self.store.put_contents((p.name, p.known, p.content) for p in some if p.is_new)
        for place, runner in enumerate(self.runners):
            self.store.put(
                runner.key, [(p.content, p.answers[place]) for p in some if place in p.asked]
            )

    def _write_by_frequency(self, writer: CaptionWriter, seen: Sequence[_Picture]) -> None:
        """All captions in the end, when it is known how many pictures have each tag."""
        counts = Counter(
            tag.text for picture in seen for tag in self.composer.selected(picture.said()).tags
        )
        composer = Composer(self.runners, self.selection, self.run.join, counts)
        self.report.done -= len(seen)
        for start in range(0, len(seen), _AT_ONCE):
            if self.stop.is_set():
                return
            some = seen[start : start + _AT_ONCE]
            self._count(writer.write([(p.path, composer.text(p.said())) for p in some]))

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        report = self.report
        with self._lock:
            report.done += len(outcomes)
            for outcome in outcomes:
                if outcome.what == "problem":
                    report.problems.append(outcome)
                    continue
                setattr(report, outcome.what, getattr(report, outcome.what) + 1)
                if self.output.dry_run and outcome.what == "written":
                    report.changes.append(outcome)


class _Rate:
    """Pictures a second over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def progress(self, report: Report) -> Progress:
        """How far it is now."""
        now, done = time.monotonic(), report.done
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        left = (report.total - done) / rate if rate > 0 else None
        return Progress(done, report.total, rate, left, len(report.problems))
