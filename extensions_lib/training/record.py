"""What happened in a run, line by line on disk: losses, samples, files; for plots and resuming."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem

NAME = "record.jsonl"


class Record:
    """The record in a run's folder. Entries are dicts with a "step"; each is on disk at once.

    Dropped when it is opened, for a run that goes on from a state: entries beyond `upto`, whose
    steps are done again; how it ended before (`last_word`); a line that a kill has cut short.
    """

    def __init__(self, folder: Path, upto: int = 0) -> None:
        self.path = folder / NAME
        self._lock = threading.Lock()
        self.heard: list[Callable[[dict[str, Any]], None]] = []  # told of each new entry
        self._entries = [
            each
            for each in read_record(folder)
            if each["step"] <= upto and not each.get("last_word")
        ]
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(each) + "\n" for each in self._entries)
        try:
            self._file = self.path.open("w", encoding="utf-8")
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise FileProblem(f"{self.path}: cannot be written ({error.strerror}).") from None

    def add(self, step: int, **told: Any) -> None:
        """Writes an entry. Raises FileProblem, with the entry kept in memory."""
        entry = {"step": step, **told}
        for listener in self.heard:
            listener(entry)
        with self._lock:
            self._entries.append(entry)
            try:
                self._file.write(json.dumps(entry) + "\n")
                self._file.flush()
            except OSError as error:
                raise FileProblem(f"{self.path}: cannot be written ({error.strerror}).") from None

    def entries(self, key: str, since: int = 0) -> list[dict[str, Any]]:
        """The entries that tell of `key`, from number `since` of them on."""
        with self._lock:
            return [each for each in self._entries if key in each][since:]

    def close(self) -> None:
        """Nothing more is written."""
        with self._lock:
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's folder; [] where there is none."""
    path = folder / NAME
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break  # a line that a kill has cut short: what follows cannot be whole either
        if not (isinstance(entry, dict) and isinstance(entry.get("step"), int)):
            break
        found.append(entry)
    return found
