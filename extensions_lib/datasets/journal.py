"""Every change of a set's captions as a step on disk that can be taken back: nothing is lost.

The journal is a SQLite database in the set's hidden folder `.crucible/`. A step's texts, before and
after, are in it for good before the first caption file is replaced, so whatever happens then, a
kill, a full disk, a power failure, both texts exist:

    1. the step and its texts are committed, as "open"
    2. each caption file is replaced whole (temporary file, rename)
    3. the step is committed as "done"

A step found half way when the set is opened again is shown as interrupted, with what it did;
undoing it or finishing it brings all its files to one side. Undo and redo look at each file before
they write: a text that the journal does not know is another program's, and is not overwritten
without a word. A new step after undo leaves the undone ones in the journal, as "dropped": their
texts stay among the versions of a caption.

One program at a time changes a set: it holds `.crucible/lock`, which the system frees if it dies.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from extensions_lib.atomic import KEPT, atomic_write, reason
from extensions_lib.datasets.captions import read_bytes
from extensions_lib.datasets.journal_store import Chain, JournalProblem, Store
from extensions_lib.errors import CrucibleError, FileProblem

FOLDER = ".crucible"
_WAIT = 1.0  # seconds, for another program that changes the set
OUTSIDE = ("refuse", "keep", "overwrite")

Content = bytes | None  # of a caption file; None: there is none


class EditedOutside(CrucibleError):
    """Captions were changed by another program meanwhile; `names` are their files in the set."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        super().__init__(
            f"{names[0]}{more}: changed by another program meanwhile, so nothing was written;"
            " reload the set to see the new text."
        )


@dataclass(frozen=True)
class Entry:
    """A step as the history shows it. `when` in seconds since 1970, `count` caption files.

    `state`: "done", "undone", "dropped" (undone, then other steps were made) or "running" (in this
    or another program). `interrupted`: it was cut off, and may have done a part only.
    """

    id: int
    title: str
    when: float
    count: int
    state: str
    interrupted: bool


@dataclass(frozen=True)
class Version:
    """A text that a caption had; `content` None: there was no file."""

    when: float
    title: str
    content: Content


@dataclass(frozen=True)
class Moved:
    """What undo or redo did: the step, the files it wrote, and those left as found outside."""

    entry: Entry
    names: tuple[str, ...]
    kept: tuple[str, ...] = ()


class Journal:
    """The journal of the set in `folder`; nothing is made on disk before the first step.

    Safe to use from several threads; other programs are kept out while a step is made. Names of
    files are paths within the folder with "/".
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._store = Store(self.folder / FOLDER)
        self._busy = threading.Lock()
        if self._store.exists():
            # Where it cannot be locked, another program works there, or nobody may write.
            with contextlib.suppress(JournalProblem), self._locked(wait=0):
                pass

    # --- looking --------------------------------------------------------------------------------

    def history(self) -> list[Entry]:
        """The steps, newest first. Raises JournalProblem."""
        return [Entry(*row) for row in self._store.steps()]

    def versions(self, name: str) -> list[Version]:
        """All texts that a caption file had, oldest first. Raises JournalProblem."""
        return [Version(*row) for row in self._store.versions(name)]

    def last_known(self) -> dict[str, Content]:
        """What the journal knows each file to hold, by name. Raises JournalProblem."""
        return self._store.last_known()

    # --- changing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step under way; its writes are on disk as they are made, and are undone together.

        A step that wrote nothing leaves no trace. On an error what was written stays, and the step
        is shown as interrupted. Raises JournalProblem: a set that cannot be written to, a busy one.
        """
        with self._locked():
            step = Step(self, title)
            finished = False
            try:
                yield step
                finished = True
            finally:
                step.close(interrupted=not finished)

    def undo(self, outside: str = "refuse") -> Moved | None:
        """Takes the last step that is done back; None if there is none.

        `outside` says what becomes of files that another program changed since: "refuse" raises
        EditedOutside before anything is written, "keep" leaves those, "overwrite" keeps their text
        among the versions and writes over them. Raises JournalProblem, FileProblem.
        """
        return self._move("done", "undone", outside)

    def redo(self, outside: str = "refuse") -> Moved | None:
        """Does the last undone step again; None if there is none. As `undo`."""
        return self._move("undone", "done", outside)

    def finish(self, outside: str = "refuse") -> Moved | None:
        """Completes the last step if it was interrupted: writes what it had not. As `undo`.

        Only files whose new text was decided before the interruption are known to the step.
        """
        newest = next((entry for entry in self.history() if entry.state == "done"), None)
        if newest is None or not newest.interrupted:
            return None
        return self._move("done", "done", outside)

    def _move(self, source: str, target: str, outside: str) -> Moved | None:
        if outside not in OUTSIDE:
            raise JournalProblem(f"outside: {outside!r} is none of {', '.join(OUTSIDE)}.")
        if not self._store.exists():
            return None
        with self._locked():
            found = self._store.next(source)
            if found is None:
                return None
            entry = Entry(*found)
            chains = self._store.chains(entry.id)
            now = {chain.name: self.read(chain.name) for chain in chains}
            strange = [chain.name for chain in chains if now[chain.name] not in chain.contents]
            if strange and outside == "refuse":
                raise EditedOutside(strange)
            kept = strange if outside == "keep" else []
            if outside == "overwrite" and strange:
                self._store.remember_outside({name: now[name] for name in strange})
            wanted = _ends(chains, first=target == "undone")
            changes = {n: c for n, c in wanted.items() if n not in kept and now[n] != c}
            self._store.set_state(entry.id, "moving")
            self._replace_all(
                changes,
                now,
                lambda left: self._store.set_state(
                    entry.id, source, interrupted=bool(left) or entry.interrupted
                ),
            )
            self._store.set_state(entry.id, target, interrupted=False)
            return Moved(entry, tuple(changes), tuple(kept))

    def read(self, name: str) -> Content:
        """What a file of the set holds now. Raises CaptionProblem."""
        return read_bytes(os.path.join(self.folder, name))

    def _replace_all(
        self,
        changes: Mapping[str, Content],
        before: Mapping[str, Content],
        failed: Callable[[list[str]], None],
    ) -> None:
        """Writes all, or puts all back; `failed` gets the names that could not be put back."""
        done: list[str] = []
        try:
            for name, content in changes.items():
                self._write(name, content)
                done.append(name)
        except FileProblem as problem:
            left = []
            for name in reversed(done):
                try:
                    self._write(name, before[name])
                except FileProblem:
                    left.append(name)
            failed(left)
            if left:
                raise JournalProblem(
                    f"{problem} {len(left)} captions could not be put back; undo does it once"
                    " that is mended."
                ) from problem
            raise JournalProblem(f"{problem}. No caption was changed.") from problem

    def _write(self, name: str, content: Content) -> None:
        path = os.path.join(self.folder, name)
        if content is not None:
            # not made durable one by one: the journal, which is, has the same bytes
            with atomic_write(path, durable=False) as temporary:
                temporary.write_bytes(content)
            return
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileProblem(f"{path}: cannot be removed ({reason(error)})") from error

    # --- the lock -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, wait: float = _WAIT) -> Iterator[None]:
        """Alone with the set, and what was interrupted marked as such."""
        import filelock

        busy = JournalProblem(
            f"{self.folder}: its captions are being changed by another program or window;"
            " wait until it is done."
        )
        if not self._busy.acquire(timeout=wait):
            raise busy
        try:
            self._store.make_folder()
            lock = filelock.FileLock(self.folder / FOLDER / "lock", thread_local=False)
            try:
                lock.acquire(timeout=wait, poll_interval=0.05)
            except NotImplementedError as error:
                raise self._store.refusal(error) from error
            except (filelock.Timeout, RuntimeError):  # the latter: by this very thread
                raise busy from None
            except OSError as error:
                raise self._store.refusal(error) from error
            try:
                self._tidy(self._store.mark_interrupted())
                yield
            finally:
                lock.release()
        finally:
            self._busy.release()

    def _tidy(self, names: Sequence[str]) -> None:
        """Removes temporary files that a killed program left beside these captions."""
        stems = {f"{Path(name).name[:KEPT]}." for name in names}
        for folder in {(self.folder / name).parent for name in names}:
            with contextlib.suppress(OSError):
                for file in os.listdir(folder):
                    if file.endswith(".tmp") and file[: -len("12345678.tmp")] in stems:
                        (folder / file).unlink()


class Step:
    """A step under way; made by `Journal.step`."""

    def __init__(self, journal: Journal, title: str) -> None:
        self._journal, self.title = journal, title
        self._store = journal._store
        self._id: int | None = None

    def write(
        self, changes: Mapping[str, Content], expected: Mapping[str, Content] | None = None
    ) -> list[str]:
        """Makes these files hold this, None: removed; the names of those that changed.

        `expected` is what the caller knows some to hold: where it is something else now,
        EditedOutside is raised before anything is written. When one cannot be written, those of
        this call are put back. Raises JournalProblem, CaptionProblem.
        """
        now = {self._checked(name): self._journal.read(name) for name in changes}
        strange = [name for name, had in (expected or {}).items() if now.get(name, had) != had]
        if strange:
            raise EditedOutside(strange)
        real = {name: content for name, content in changes.items() if now[name] != content}
        if not real:
            return []
        batch: list[int] = []
        self._id, batch = self._store.add(
            self._id, self.title, [(name, now[name], content) for name, content in real.items()]
        )
        self._journal._replace_all(real, now, lambda left: self._store.forget(batch, keep=left))
        return list(real)

    def close(self, interrupted: bool) -> None:
        """Ends the step; called by `Journal.step`."""
        if self._id is not None:
            self._store.finish(self._id, interrupted)

    def _checked(self, name: str) -> str:
        parts = name.replace(os.sep, "/").split("/")
        if os.path.isabs(name) or {"", ".", ".."} & set(parts):
            raise JournalProblem(f"{name}: is no file within {self._journal.folder}.")
        return name


def _ends(chains: Sequence[Chain], first: bool) -> dict[str, Content]:
    return {chain.name: chain.contents[0 if first else -1] for chain in chains}
