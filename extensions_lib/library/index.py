"""The index of network files and embeddings: what a name in a prompt means."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import FileCache, Identity
from extensions_lib.library.entry import Entry
from extensions_lib.library.scan import Found, walk
from extensions_lib.library.shelf import NETWORKS, Shelf, learn
from extensions_lib.models.families import Family

_WRITE_EVERY = 200  # files, so that a stopped first scan is not lost

Progress = Callable[[int, int], None]  # files done, files in all


@dataclass(frozen=True)
class _Names:
    """The names that lead to entries, best first."""

    exact: dict[str, Entry] = field(default_factory=dict)
    folded: dict[str, Entry] = field(default_factory=dict)
    stems: dict[str, list[Entry]] = field(default_factory=dict)


class Library:
    """Files of one kind (a `shelf`) below some folders: networks, embeddings or hypernetworks.

    `refresh` looks at every file's size and time and opens only those that are new or changed;
    what it learnt stays in `cache` (a folder) for the next start. A broken file is an entry with a
    `problem`. The first folder and the alphabet decide between files of one name.
    """

    def __init__(
        self, folders: Sequence[Path], cache: Path | None = None, shelf: Shelf = NETWORKS
    ) -> None:
        self.shelf = shelf
        self.folders = [Path(folder) for folder in folders]
        self.entries: list[Entry] = []
        self.duplicates: list[str] = []  # what a name hides, said for the user
        self.problems: list[str] = []  # folders and files that could not be looked at
        self._cache = FileCache(cache)
        self._names = _Names()
        self._lock = threading.Lock()

    def refresh(self, on_progress: Progress | None = None) -> None:
        """Brings the index up to date with the disk."""
        with self._lock:
            problems: list[str] = []
            found = list(walk(self.folders, problems, self.shelf.suffixes))
            entries = self._entries(found, on_progress)
            same = len(entries) == len(self.entries)
            if same and all(map(operator.is_, entries, self.entries)):
                self.problems = problems
                return
            names, duplicates = _name(entries)
            # replaced whole, so that a reader in another thread sees the old or the new index
            self.entries, self._names = entries, names
            self.duplicates, self.problems = duplicates, problems

    def _entries(self, found: list[Found], on_progress: Progress | None) -> list[Entry]:
        before = {str(entry.path): entry for entry in self.entries}
        kept: dict[str, tuple[Identity, Any]] | None = None
        learnt: dict[str, tuple[Identity, Any]] = {}
        entries = []
        for done, item in enumerate(found):
            known = before.pop(item.path, None)
            if known and (known.identity, known.sidecars) == (item.identity, item.sidecars):
                entries.append(known)
                continue
            if kept is None:  # nothing new: the database need not be asked
                kept = self._cache.all(self.shelf.key)
            path = os.path.abspath(item.path)
            identity, facts = kept.get(path, (None, None))
            if identity != item.identity or not isinstance(facts, dict):
                facts = learn(self.shelf, Path(item.path))
                learnt[path] = (item.identity, facts)
                if len(learnt) >= _WRITE_EVERY:
                    self._cache.put_many(self.shelf.key, learnt)
                    learnt = {}
            if facts:
                entries.append(self._entry(item, facts))
            if on_progress:
                on_progress(done + 1, len(found))
        self._cache.put_many(self.shelf.key, learnt)
        self._forget_removed({*map(os.path.abspath, before), *(kept or ())}, found)
        return entries

    def _forget_removed(self, known: set[str], found: list[Found]) -> None:
        if not known:
            return
        there = {os.path.abspath(item.path) for item in found}
        roots = tuple(os.path.join(os.path.abspath(folder), "") for folder in self.folders)
        # another library may share the cache: its folders are left alone
        gone = [path for path in known if path not in there and path.startswith(roots)]
        self._cache.forget(self.shelf.key, gone)

    def _entry(self, item: Found, facts: dict[str, Any]) -> Entry:
        path = Path(item.path)
        return Entry(
            name=path.stem,
            path=path,
            relative=item.relative,
            identity=item.identity,
            alias=facts.get("alias"),
            kind=facts.get("kind", ""),
            family=_family(facts.get("family")),
            layers=facts.get("layers", 0),
            widths=facts.get("widths") or {},
            vectors=facts.get("vectors", 0),
            problem=facts.get("problem"),
            sidecars=item.sidecars,
            cache=self._cache,
            whole_hash=self.shelf.whole_hash,
        )

    def find(self, name: str) -> Entry | None:
        """The entry that a name in a prompt means, or None.

        Tried in this order: path within a folder, stem, alias; then the same without regard to
        case. A suffix (`name.safetensors`) and backslashes are understood.
        """
        names = self._names
        wanted = name.strip().replace("\\", "/").removeprefix("./")
        spellings = [wanted]
        if os.path.splitext(wanted)[1].lower() in self.shelf.suffixes:
            spellings.append(os.path.splitext(wanted)[0])
        for table, fold in ((names.exact, False), (names.folded, True)):
            for spelling in spellings:
                entry = table.get(spelling.casefold() if fold else spelling)
                if entry is not None:
                    return entry
        return None

    def find_hash(self, short: str) -> Entry | None:
        """The entry whose network hash begins with these digits (pasted infotext); may hash files.

        Files that cannot be read are passed over.
        """
        wanted = short.strip().lower()
        if len(wanted) < 8:
            return None
        for entry in self.entries:
            try:
                if entry.hash.startswith(wanted):
                    return entry
            except FileProblem:
                continue  # said already, as the entry's problem
        return None

    def tag_name(self, entry: Entry) -> str:
        """The shortest name that means this very entry: its stem, else its path in the folder."""
        return entry.name if self.find(entry.name) is entry else entry.relative


def _family(value: object) -> Family | None:
    return next((family for family in Family if family.value == value), None)


def _name(entries: Sequence[Entry]) -> tuple[_Names, list[str]]:
    names, duplicates = _Names(), []
    for entry in entries:
        names.stems.setdefault(entry.name, []).append(entry)
    relatives: dict[str, Entry] = {}
    for entry in entries:
        first = relatives.setdefault(entry.relative, entry)
        if first is not entry:
            duplicates.append(f"'{entry.relative}' means {first.path}; {entry.path} is hidden")
    aliases: dict[str, Entry] = {}
    for entry in entries:
        if not entry.alias or entry.alias == entry.name:
            continue
        named = names.stems.get(entry.alias)
        owner = named[0] if named else aliases.setdefault(entry.alias, entry)
        if owner is not entry:
            duplicates.append(
                f"'{entry.alias}', the alias of {entry.path}, means {owner.path};"
                f" write '{entry.name}' for the first"
            )
    for stem, same in names.stems.items():
        reachable = [entry for entry in same if relatives[entry.relative] is entry]
        if len(reachable) > 1:
            duplicates.append(_said(stem, reachable))
    # a file at the top of its folder has its stem as its path, and so comes before one below
    for table in (relatives, {stem: same[0] for stem, same in names.stems.items()}, aliases):
        for name, entry in table.items():
            names.exact.setdefault(name, entry)
            names.folded.setdefault(name.casefold(), entry)
    return names, duplicates


def _said(stem: str, same: Sequence[Entry]) -> str:
    top = next((entry for entry in same if entry.relative == stem), same[0])
    others = ", ".join(f"{e.path} ('{e.relative}')" for e in same if e is not top)
    return f"'{stem}' means {top.path}; for the others write their folder too: {others}"
