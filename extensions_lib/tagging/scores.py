"""What models said about pictures, kept on disk by what the picture is, not where it lies.

One SQLite database: a row for each picture (sha256 of the file) and model (name, revision and
version of the preprocessing). Tag scores are float16 above a floor, about 1 KB a picture; a
captioner's text is kept likewise. Captions are always made from what stands here, so that a
second run with other thresholds says exactly what a first run would have said.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from extensions_lib.errors import FileProblem

if TYPE_CHECKING:
    from extensions_lib.tagging.selection import Array, Sparse

log = logging.getLogger(__name__)
T = TypeVar("T")

FLOOR = 0.01  # scores below are not kept; no threshold is as low
NAME = "scores.sqlite"
_BUSY_SECONDS = 60.0  # how long another process may hold the database
_TABLES = """
CREATE TABLE IF NOT EXISTS models (
    id INTEGER PRIMARY KEY, name TEXT, revision TEXT, preprocess TEXT,
    UNIQUE (name, revision, preprocess));
CREATE TABLE IF NOT EXISTS scores (
    content BLOB, model INTEGER, value BLOB, PRIMARY KEY (content, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, content BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (
    path BLOB PRIMARY KEY, before TEXT, after TEXT, previous TEXT) WITHOUT ROWID;
"""


class ModelKey(NamedTuple):
    """What scores depend on besides the picture."""

    name: str
    revision: str
    preprocess: str = ""


class Identity(NamedTuple):
    """By what a file counts as unchanged: bytes, and the time of the last change in ns."""

    size: int
    changed: int


class Written(NamedTuple):
    """A caption of ours: the text that was there before, if any, the one we write, and the one of
    ours that it replaces: if the writing is cut off, that one is still there.
    """

    before: str | None
    after: str
    previous: str | None = None


def identity(path: str | os.PathLike[str]) -> Identity:
    """A file's identity as it is now. Raises OSError."""
    found = os.stat(path)
    return Identity(found.st_size, found.st_mtime_ns)


def sparse(values: Array, floor: float = FLOOR) -> Sparse:
    """Scores [labels] as they are kept: the indices from the floor up, and float16 values."""
    indices = np.flatnonzero(values >= floor)
    return indices.astype(np.uint32), values[indices].astype(np.float16)


class ScoreStore:
    """The database in a folder, or in memory for None; for many threads and processes.

    Raises FileProblem where it cannot be made or written. One that is broken is set aside under
    another name, which `messages` tells, and a new one begun: scores can be computed again, and
    what was in the old one is not lost.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, messages: list[str] | None = None):
        self.path = None if folder is None else Path(folder) / NAME
        self.messages: list[str] = [] if messages is None else messages
        self._lock = threading.RLock()
        self._models: dict[ModelKey, int] = {}
        try:
            self._db = self._open()
        except sqlite3.OperationalError as error:
            raise FileProblem(f"{self.path}: cannot be used for scores ({error}).") from error
        except OSError as error:
            raise FileProblem(f"{self.path}: cannot be made ({error.strerror}).") from error

    # --- the database -------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            return _prepared(":memory:")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _prepared(str(self.path))
        except sqlite3.DatabaseError as error:
            if not _broken(error):
                raise
            return self._anew(error)

    def _anew(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        """Sets the broken database aside, unless another process has just done so."""
        from filelock import FileLock

        assert self.path is not None
        with FileLock(f"{self.path}.lock"):
            with contextlib.suppress(sqlite3.DatabaseError):
                return _prepared(str(self.path), thorough=True)
            aside = _free_name(self.path)
            for end in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{end}", f"{aside}{end}")
            said = (
                f"{self.path} was broken ({error}); it is kept as {aside.name}, and scores are "
                "computed again."
            )
            log.warning("%s", said)
            self.messages.append(said)
            return _prepared(str(self.path))

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work`; once more in a new database if this one turns out broken."""
        with self._lock:
            try:
                return work(self._db)
            except sqlite3.OperationalError as error:
                raise FileProblem(
                    f"{self.path}: scores could not be kept ({error}); look for a full disk or "
                    "missing permission."
                ) from error
            except sqlite3.DatabaseError as error:
                if self.path is None or not _broken(error):
                    raise
                self._db.close()
                self._models.clear()
                self._db = self._anew(error)
                return work(self._db)

    def _write(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        rows = list(rows)

        def work(db: sqlite3.Connection) -> None:
            with _writing(db):
                db.executemany(sql, rows)

        if rows:
            self._do(work)

    def close(self) -> None:
        """Ends the connection; what was put is on disk."""
        with self._lock:
            self._db.close()

    # --- files --------------------------------------------------------------------------------

    def content(self, path: str, known: Identity) -> bytes | None:
        """The sha256 of a file, if it is known and the file is still the same."""
        sql = "SELECT content FROM files WHERE path=? AND size=? AND changed=?"
        row = self._do(lambda db: db.execute(sql, (os.fsencode(path), *known)).fetchone())
        return row[0] if row else None

    def put_contents(self, found: Iterable[tuple[str, Identity, bytes]]) -> None:
        """Keeps hashes by path; the identity is that from before the file was read."""
        rows = [(os.fsencode(path), *known, content) for path, known, content in found]
        self._write("INSERT OR REPLACE INTO files VALUES (?,?,?,?)", rows)

    def written(self, path: str) -> Written | None:
        """What we last wrote, or were about to write, into a caption file."""
        sql = "SELECT before, after, previous FROM written WHERE path=?"
        row = self._do(lambda db: db.execute(sql, (os.fsencode(path),)).fetchone())
        return Written(*row) if row else None

    def put_written(self, captions: Iterable[tuple[str, Written]]) -> None:
        """Keeps what is about to be written, by path."""
        rows = [(os.fsencode(path), *each) for path, each in captions]
        self._write("INSERT OR REPLACE INTO written VALUES (?,?,?,?)", rows)

    # --- scores -------------------------------------------------------------------------------

    def _model(self, db: sqlite3.Connection, key: ModelKey) -> int:
        """The number of a model in this database; a new one if it has none."""
        if key not in self._models:
            sql = "INSERT OR IGNORE INTO models (name, revision, preprocess) VALUES (?,?,?)"
            db.execute(sql, key)
            sql = "SELECT id FROM models WHERE name=? AND revision=? AND preprocess=?"
            [self._models[key]] = db.execute(sql, key).fetchone()
        return self._models[key]

    def put(self, key: ModelKey, found: Iterable[tuple[bytes, Sparse | str]]) -> None:
        """Keeps scores, or a captioner's text, by the sha256 of the picture; in one write."""
        rows = [(content, _packed(value)) for content, value in found]

        def work(db: sqlite3.Connection) -> None:
            model = self._model(db, key)
            with _writing(db):
                db.executemany(
                    "INSERT OR REPLACE INTO scores VALUES (?,?,?)",
                    [(content, model, value) for content, value in rows],
                )

        if rows:
            self._do(work)

    def get(self, key: ModelKey, content: bytes) -> Sparse | str | None:
        """What the model said about a picture, or None."""
        sql = "SELECT value FROM scores WHERE content=? AND model=?"
        row = self._do(lambda db: db.execute(sql, (content, self._model(db, key))).fetchone())
        return _unpacked(row[0]) if row else None

    def known(self, key: ModelKey) -> set[bytes]:
        """The pictures, by sha256, of which the model's scores are kept."""
        sql = "SELECT content FROM scores WHERE model=?"
        rows = self._do(lambda db: db.execute(sql, (self._model(db, key),)).fetchall())
        return {content for [content] in rows}


@contextlib.contextmanager
def _writing(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction: all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _broken(error: sqlite3.DatabaseError) -> bool:
    """True for a damaged file or one that is no database; other troubles have their own kinds."""
    return type(error) is sqlite3.DatabaseError


def _prepared(where: str, thorough: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(
        where, check_same_thread=False, timeout=_BUSY_SECONDS, isolation_level=None
    )
    try:
        _use_wal(db)
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_TABLES)
        [said] = db.execute("PRAGMA quick_check(1)" if thorough else "SELECT 'ok'").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(said)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _use_wal(db: sqlite3.Connection) -> None:
    """WAL: readers do not wait for a writer. A file system that has none of it stays as it is."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # this change alone does not wait for others by itself
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    return aside


def _packed(value: Sparse | str) -> bytes:
    """`t` and text; or `s`, the count in 4 bytes, uint32 indices and float16 values."""
    if isinstance(value, str):
        return b"t" + value.encode()
    indices, scores = value
    return (
        b"s"
        + len(indices).to_bytes(4, "little")
        + indices.astype("<u4").tobytes()
        + scores.astype("<f2").tobytes()
    )


def _unpacked(blob: bytes) -> Sparse | str:
    if blob[:1] == b"t":
        return blob[1:].decode()
    count = int.from_bytes(blob[1:5], "little")
    indices = np.frombuffer(blob, "<u4", count, 5)
    return indices, np.frombuffer(blob, "<f2", count, 5 + 4 * count)
