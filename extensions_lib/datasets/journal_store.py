"""The database of a journal: steps, the files they changed, and every text, each kept once.

    steps    id, title, made (seconds since 1970), state, interrupted
    changes  step, number, path, before, after (ids of texts; NULL: there was no file)
    texts    id, hash, content

State: "open" (files are being written), "moving" (being undone or done again), "done", "undone",
"dropped" (undone, then other steps were made), "outside" (keeps texts that another program wrote).
Only `journal` uses this.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extensions_lib.atomic import reason
from extensions_lib.errors import FileProblem

Content = bytes | None
StepRow = tuple[int, str, float, int, str, bool]

_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS steps (
    id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, made REAL NOT NULL,
    state TEXT NOT NULL, interrupted INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS texts (
    id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS changes (
    step INTEGER NOT NULL REFERENCES steps, number INTEGER PRIMARY KEY, path BLOB NOT NULL,
    before INTEGER REFERENCES texts, after INTEGER REFERENCES texts);
CREATE INDEX IF NOT EXISTS changes_of_step ON changes (step);
CREATE INDEX IF NOT EXISTS changes_of_path ON changes (path, number);
"""
_TEXTS = "FROM changes LEFT JOIN texts b ON before = b.id LEFT JOIN texts a ON after = a.id"
_STEP = """
SELECT id, title, made, (SELECT COUNT(DISTINCT path) FROM changes WHERE step = steps.id),
    CASE WHEN state IN ('open', 'moving') THEN 'running' ELSE state END, interrupted FROM steps
"""


class JournalProblem(FileProblem):
    """A journal that cannot be read or written, or a set that is busy."""


@dataclass(frozen=True)
class Chain:
    """What one file held before a step and after each of the step's writes to it."""

    name: str
    contents: tuple[Content, ...]


class Store:
    """The database in a set's hidden folder. Raises JournalProblem."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "journal.sqlite"

    def exists(self) -> bool:
        return self.path.exists()

    def make_folder(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise self.refusal(error) from error

    def refusal(self, error: Exception) -> JournalProblem:
        """That captions cannot be changed, since their journal cannot be kept."""
        why = reason(error) if isinstance(error, OSError) else str(error)
        return JournalProblem(
            f"{self.folder}: cannot be written ({why}), so no change of the captions could be"
            " taken back. Make the folder writable, or copy the set to where you may write."
        )

    @contextlib.contextmanager
    def _database(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction; opened each time, so that nothing is held."""
        # reading, too, may have to write: what a killed program left half done is rolled back
        mode = "rwc" if write else "rw" if os.access(self.path, os.W_OK) else "ro"
        try:
            where = f"{self.path.absolute().as_uri()}?mode={mode}"
            db = sqlite3.connect(where, timeout=10, isolation_level=None, uri=True)
        except sqlite3.Error as error:
            raise self._problem(error) from error
        try:
            if write:
                db.execute("PRAGMA synchronous=FULL")
                db.execute("BEGIN IMMEDIATE")
                self._prepare(db)
            yield db
            if write:
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._problem(error) from error
        finally:
            db.close()  # what was not committed is rolled back

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        if not self.exists():
            return []
        with self._database() as db:
            if db.execute("PRAGMA user_version").fetchone() == (0,):  # killed while it was made
                return []
            return db.execute(query, values).fetchall()

    def _prepare(self, db: sqlite3.Connection) -> None:
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise JournalProblem(f"{self.path}: is of a newer Crucible; update this one.")
        if version < _VERSION:
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={_VERSION}")

    def _problem(self, error: sqlite3.Error) -> JournalProblem:
        said = str(error)
        if isinstance(error, sqlite3.OperationalError):
            if "full" in said:
                said = "the disk is full; free some space"
            return self.refusal(Exception(said))
        return JournalProblem(
            f"{self.path}: the journal is damaged ({said}). The captions are untouched; move the"
            " file away to begin a new journal."
        )

    # --- reading --------------------------------------------------------------------------------

    def steps(self) -> list[StepRow]:
        return self._steps("WHERE state != 'outside' ORDER BY id DESC")

    def next(self, state: str) -> StepRow | None:
        """The step that undo ("done") or redo ("undone") takes."""
        order = "id DESC" if state == "done" else "id"
        found = self._steps(f"WHERE state = '{state}' ORDER BY {order} LIMIT 1")
        return found[0] if found else None

    def _steps(self, where: str) -> list[StepRow]:
        rows = self._rows(_STEP + where)
        return [(id, title, made, n, state, bool(cut)) for id, title, made, n, state, cut in rows]

    def chains(self, step: int) -> list[Chain]:
        """What a step did to each of its files."""
        rows = self._rows(
            f"SELECT path, b.content, a.content {_TEXTS} WHERE step = ? ORDER BY number", (step,)
        )
        found: dict[bytes, list[Content]] = {}
        for path, before, after in rows:
            found.setdefault(path, [before]).append(after)
        return [Chain(_name(path), tuple(contents)) for path, contents in found.items()]

    def versions(self, name: str) -> list[tuple[float, str, Content]]:
        """When, by which step, what a file came to hold; oldest first."""
        rows = self._rows(
            f"SELECT made, title, b.content, a.content {_TEXTS} JOIN steps ON step = steps.id"
            " WHERE path = ? ORDER BY number",
            (_path(name),),
        )
        found: list[tuple[float, str, Content]] = []
        for made, title, before, after in rows:
            if not found or found[-1][2] != before:
                found.append((made, "Changed outside" if found else "As found", before))
            if after != before:
                found.append((made, title, after))
        return found

    def last_known(self) -> dict[str, Content]:
        """What each file holds after the steps that are done and before those undone."""
        known: dict[str, Content] = {}
        # of several rows the one with the least or largest number: SQLite's bare columns
        for state, which, side in (
            ("IN ('dropped', 'outside')", "MIN", "before"),
            ("= 'done'", "MAX", "after"),
            ("= 'undone'", "MIN", "before"),
        ):
            rows = self._rows(
                f"SELECT path, content FROM (SELECT path, {side} AS text, {which}(number)"
                f" FROM changes JOIN steps ON step = steps.id WHERE state {state}"
                " GROUP BY path) LEFT JOIN texts ON text = texts.id"
            )
            known.update((_name(path), content) for path, content in rows)
        return known

    # --- writing --------------------------------------------------------------------------------

    def add(
        self, step: int | None, title: str, changes: Sequence[tuple[str, Content, Content]]
    ) -> tuple[int, list[int]]:
        """Adds changes (name, before, after) to a step, None: a new one, which is open.

        The step's id, and the numbers of the changes.
        """
        with self._database(write=True) as db:
            if step is None:
                step = self._insert_step(db, title, "open")
            [last] = db.execute("SELECT COALESCE(MAX(number), 0) FROM changes").fetchone()
            self._insert(db, step, changes)
            return step, list(range(last + 1, last + 1 + len(changes)))

    def remember_outside(self, contents: Mapping[str, Content]) -> None:
        """Keeps texts that another program wrote, which are about to be written over."""
        with self._database(write=True) as db:
            step = self._insert_step(db, "Changed outside", "outside")
            self._insert(db, step, [(name, content, content) for name, content in contents.items()])

    @staticmethod
    def _insert_step(db: sqlite3.Connection, title: str, state: str) -> int:
        cursor = db.execute(
            "INSERT INTO steps (title, made, state) VALUES (?, ?, ?)", (title, time.time(), state)
        )
        return int(cursor.lastrowid or 0)

    @staticmethod
    def _insert(
        db: sqlite3.Connection, step: int, changes: Sequence[tuple[str, Content, Content]]
    ) -> None:
        hashed = [(_path(name), _hash(before), _hash(after)) for name, before, after in changes]
        texts = {
            _hash(content): content
            for _, *both in changes
            for content in both
            if content is not None
        }
        db.executemany("INSERT OR IGNORE INTO texts (hash, content) VALUES (?, ?)", texts.items())
        db.executemany(
            "INSERT INTO changes (step, path, before, after) VALUES (?, ?,"
            " (SELECT id FROM texts WHERE hash = ?), (SELECT id FROM texts WHERE hash = ?))",
            [(step, *row) for row in hashed],
        )

    def forget(self, numbers: Sequence[int], keep: Sequence[str] = ()) -> None:
        """Takes changes that were put back out of their step, but for those of the files `keep`."""
        kept = {_path(name) for name in keep}
        with self._database(write=True) as db:
            rows = db.execute(
                "SELECT number, path FROM changes WHERE number BETWEEN ? AND ?",
                (numbers[0], numbers[-1]),
            ).fetchall()
            gone = [(number,) for number, path in rows if path not in kept]
            db.executemany("DELETE FROM changes WHERE number = ?", gone)

    def finish(self, step: int, interrupted: bool) -> None:
        """Ends an open step: done, and what was undone before it dropped; gone if it is empty."""
        with self._database(write=True) as db:
            _finish(db, step, interrupted)

    def set_state(self, step: int, state: str, interrupted: bool = False) -> None:
        with self._database(write=True) as db:
            db.execute(
                "UPDATE steps SET state = ?, interrupted = ? WHERE id = ?",
                (state, interrupted, step),
            )

    def mark_interrupted(self) -> list[str]:
        """Ends the steps that a program which died left; the names of their files."""
        half = self._rows("SELECT id FROM steps WHERE state IN ('open', 'moving')")
        if not half:
            return []
        with self._database(write=True) as db:
            paths: list[bytes] = []
            for (step,) in half:
                found = db.execute("SELECT path FROM changes WHERE step = ?", (step,))
                paths += [path for (path,) in found]
                _finish(db, step, True)
        return [_name(path) for path in paths]


def _finish(db: sqlite3.Connection, step: int, interrupted: bool) -> None:
    if db.execute("SELECT 1 FROM changes WHERE step = ? LIMIT 1", (step,)).fetchone() is None:
        db.execute("DELETE FROM steps WHERE id = ?", (step,))
        return
    db.execute("UPDATE steps SET state = 'done', interrupted = ? WHERE id = ?", (interrupted, step))
    db.execute("UPDATE steps SET state = 'dropped' WHERE state = 'undone' AND id < ?", (step,))


def _hash(content: Content) -> bytes | None:
    return None if content is None else hashlib.sha256(content).digest()


def _path(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # names on a disk need not be Unicode


def _name(path: bytes) -> str:
    return path.decode("utf-8", "surrogatepass")
