"""What was learnt about files, kept on disk as long as the files do not change."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Identity = tuple[int, int]  # size in bytes, time of the last change in ns

_TABLE = (
    "CREATE TABLE IF NOT EXISTS facts"
    " (kind TEXT, path TEXT, size INTEGER, changed INTEGER, value TEXT, PRIMARY KEY (kind, path))"
)


def identity(path: str | os.PathLike[str]) -> Identity:
    """(size, mtime_ns) of a file. Raises OSError."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


class FileCache:
    """JSON values by kind and file, valid while size and time of the file stay the same.

    A database that is broken is started anew; where none can be written, the cache lives in memory.
    Safe to use from several threads and processes.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, name: str = "files.sqlite") -> None:
        self.path = None if folder is None else Path(folder) / name
        self._lock = threading.RLock()
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            for attempt in (1, 2):
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    return self._prepared(str(self.path))
                except sqlite3.OperationalError as error:
                    log.warning("%s cannot be used (%s); caching in memory", self.path, error)
                    break
                except (sqlite3.DatabaseError, OSError) as error:
                    log.warning("%s is unusable (%s); attempt %d", self.path, error, attempt)
                    with contextlib.suppress(OSError):
                        self.path.unlink()
        return self._prepared(":memory:")

    @staticmethod
    def _prepared(where: str) -> sqlite3.Connection:
        db = sqlite3.connect(where, check_same_thread=False, timeout=5.0, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous=OFF")
            db.execute(_TABLE)
            db.execute("SELECT kind, path, size, changed, value FROM facts LIMIT 1").fetchall()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _run(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(sql, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            # a lost fact is computed again; a broken database is replaced
            log.warning("the cache %s was not updated (%s)", self.path, error)
            self._recover(error)

    def _recover(self, error: sqlite3.Error) -> None:
        if self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError):
            return
        self._db.close()
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._db = self._open()

    def get(self, kind: str, path: str | os.PathLike[str]) -> Any | None:
        """The value kept for the file as it is now, or None. Raises OSError for no file."""
        size, changed = identity(path)
        with self._lock:
            try:
                row = self._db.execute(
                    "SELECT value FROM facts WHERE kind=? AND path=? AND size=? AND changed=?",
                    (kind, _absolute(path), size, changed),
                ).fetchone()
            except sqlite3.Error as error:
                self._recover(error)
                return None
        return _decoded(row[0]) if row else None

    def put(
        self, kind: str, path: str | os.PathLike[str], value: Any, known: Identity | None = None
    ) -> None:
        """Keeps a JSON value; `known` is the file's identity from before the value was computed."""
        self.put_many(kind, {_absolute(path): (known or identity(path), value)})

    def put_many(self, kind: str, values: Mapping[str, tuple[Identity, Any]]) -> None:
        """Keeps many values, by absolute path, in one write."""
        rows = [
            (kind, path, size, changed, json.dumps(value))
            for path, ((size, changed), value) in values.items()
        ]
        with self._lock:
            if rows:
                self._run("INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?)", rows)

    def all(self, kind: str, paths: Sequence[str] | None = None) -> dict[str, tuple[Identity, Any]]:
        """What is kept of one kind, by absolute path, in one read; nothing is checked.

        paths: the files wanted, at most a few hundred (None: all there are).
        """
        sql = "SELECT path, size, changed, value FROM facts WHERE kind=?"
        if paths is not None:
            sql += f" AND path IN ({','.join('?' * len(paths))})"
        with self._lock:
            try:
                rows = self._db.execute(sql, (kind, *(paths or ()))).fetchall()
            except sqlite3.Error as error:
                self._recover(error)
                return {}
        values = _all_decoded([text for *_, text in rows])
        return {row[0]: ((row[1], row[2]), value) for row, value in zip(rows, values, strict=True)}

    def forget(self, kind: str, paths: Iterable[str]) -> None:
        """Drops the values of these absolute paths."""
        rows = [(kind, path) for path in paths]
        with self._lock:
            if rows:
                self._run("DELETE FROM facts WHERE kind=? AND path=?", rows)

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)


def _all_decoded(texts: Sequence[str]) -> Sequence[Any]:
    try:
        values: list[Any] = json.loads(f"[{','.join(texts)}]")  # much faster than one by one
    except (ValueError, TypeError):
        return [_decoded(text) for text in texts]
    return values if len(values) == len(texts) else [_decoded(text) for text in texts]


def _decoded(text: object) -> Any | None:
    try:
        return json.loads(str(text))
    except ValueError:
        return None
