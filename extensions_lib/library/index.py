"""The index of network files and embeddings: what a name in a prompt means."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import FileCache, Identity
from extensions_lib.library.entry import Entry
from extensions_lib.library.scan import Found, Walker
from extensions_lib.library.shelf import NETWORKS, Shelf, forget_alike, learn
from extensions_lib.models.families import Family

_WRITE_EVERY = 200  # files, so that a stopped first scan is not lost
_FEW = 200  # files that are looked up by name; for more, all that is kept is read
_HASHED_AT_ONCE = 4 << 30  # bytes
_FAMILIES: dict[object, Family] = {family.value: family for family in Family}

Kept = tuple[Identity, Any]  # what was learnt of a file, and of which state of it
Progress = Callable[[int, int], None]  # files done, files in all


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for circles of garbage.

    Thousands of new small objects set it off again and again, each time through all that the
    program has in memory, and there are no circles among them. A third of a start went there.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


class _Names:
    """The names that lead to entries: tables of them, the best first."""

    def __init__(self, *tables: Mapping[str, Entry]) -> None:
        self._tables = tables
        self.exact: dict[str, Entry] = {}
        for table in reversed(tables):
            self.exact.update(table)

    @cached_property
    def folded(self) -> dict[str, Entry]:
        """The same without regard to case; made when a name is not there as it is written."""
        found: dict[str, Entry] = {}
        for table in self._tables:
            for name in table:
                found.setdefault(name.casefold(), self.exact[name])
        return found


class Library:
    """Files of one kind (a `shelf`) below some folders: networks, embeddings or hypernetworks.

    `refresh` looks at every file's size and time and opens only those that are new or changed;
    what it learnt stays in `cache` (a folder) for the next start. A broken file is an entry with a
    `problem`. The first folder and the alphabet decide between files of one name.

    An entry tells what was true at the last refresh; whoever reads the file itself looks anew.
    """

    def __init__(
        self, folders: Sequence[Path], cache: Path | None = None, shelf: Shelf = NETWORKS
    ) -> None:
        self.shelf = shelf
        self.folders = [Path(os.path.abspath(folder)) for folder in folders]
        self.entries: list[Entry] = []
        self.duplicates: list[str] = []  # what a name hides, said for the user
        self.problems: list[str] = []  # folders and files that could not be looked at
        self._cache = FileCache(cache)
        self._walker = Walker(self.folders, shelf.suffixes)
        self._found: dict[str, Found] = {}  # by path, as are those
        self._made: dict[str, Entry] = {}  # without files that are none of this shelf
        self._names = _Names()
        self._lock = threading.Lock()

    def refresh(self, on_progress: Progress | None = None) -> None:
        """Brings the index up to date with the disk."""
        with self._lock, _uncollected():
            problems: list[str] = []
            found = self._walker.walk(problems)
            self.problems = problems
            if self._update(found, on_progress):
                entries = [self._made[item.path] for item in found if item.path in self._made]
                names, duplicates = _name(entries)
                # replaced whole, so that a reader in another thread sees the old or the new index
                self.entries, self._names, self.duplicates = entries, names, duplicates

    def _update(self, found: list[Found], on_progress: Progress | None) -> bool:
        """Brings `_found` and `_made` up to date; whether anything is new or gone."""
        before = self._found
        new = [item for item in found if before.get(item.path) is not item]
        if not new and len(found) == len(before):
            return False
        paths = [item.path for item in new] if before and len(new) <= _FEW else None
        kept = self._cache.all(self.shelf.key, paths)
        facts = self._facts(new, kept, on_progress)
        self._found = {item.path: item for item in found}
        gone = (before.keys() | kept.keys()) - self._found.keys()
        self._forget(gone)
        for path in gone:
            self._made.pop(path, None)
        for item, told in zip(new, facts, strict=True):
            self._made.pop(item.path, None)
            if told:
                self._made[item.path] = self._entry(item, told)
        return True

    def _facts(
        self, new: Sequence[Found], kept: Mapping[str, Kept], on_progress: Progress | None
    ) -> list[dict[str, Any]]:
        """What is known of these files, from what was kept or from the files themselves."""
        facts: list[dict[str, Any]] = []
        learnt: dict[str, Kept] = {}
        for item in new:
            identity, told = kept.get(item.path, (None, None))
            if identity != item.identity or not isinstance(told, dict):
                told = learn(self.shelf, Path(item.path))
                learnt[item.path] = (item.identity, told)
                if len(learnt) >= _WRITE_EVERY:
                    self._cache.put_many(self.shelf.key, learnt)
                    learnt = {}
            facts.append(told)
            if on_progress:
                on_progress(len(facts), len(new))
        self._cache.put_many(self.shelf.key, learnt)
        forget_alike()
        return facts

    def _forget(self, gone: Iterable[str]) -> None:
        roots = tuple(os.path.join(folder, "") for folder in self.folders)
        # another library may share the cache: its folders are left alone
        self._cache.forget(self.shelf.key, [path for path in gone if path.startswith(roots)])

    def _entry(self, found: Found, facts: dict[str, Any]) -> Entry:
        return Entry(
            found,
            alias=facts.get("alias"),
            kind=facts.get("kind", ""),
            family=_FAMILIES.get(facts.get("family")),
            layers=facts.get("layers", 0),
            widths=facts.get("widths") or {},
            vectors=facts.get("vectors", 0),
            problem=facts.get("problem"),
            stated_hash=facts.get("hash"),
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
        for spelling in spellings:
            if (entry := names.exact.get(spelling)) is not None:
                return entry
        for spelling in spellings:
            if (entry := names.folded.get(spelling.casefold())) is not None:
                return entry
        return None

    def find_hash(self, short: str) -> Entry | None:
        """The entry whose network hash begins with these digits (pasted infotext).

        Hashes that are known come first. Others are computed from the files, of at most 4 GB in
        one call, and kept. Files that cannot be read are passed over.
        """
        wanted = short.strip().lower()
        if len(wanted) < 8:
            return None
        unknown = []
        for entry in self.entries:
            known = entry.known_hash
            if known is None:
                unknown.append(entry)
            elif known.startswith(wanted):
                return entry
        left = _HASHED_AT_ONCE
        for entry in unknown:
            left -= entry.identity[0]
            if left < 0:
                break
            with suppress(FileProblem):  # said already, as the entry's problem
                if entry.hash.startswith(wanted):
                    return entry
        return None

    def tag_name(self, entry: Entry) -> str:
        """The shortest name that means this very entry: its stem, else its path in the folder."""
        return entry.name if self.find(entry.name) is entry else entry.relative


def _name(entries: Sequence[Entry]) -> tuple[_Names, list[str]]:
    duplicates: list[str] = []
    relatives: dict[str, Entry] = {}
    stems: dict[str, Entry] = {}
    same: dict[str, list[Entry]] = {}  # the others of a stem
    for entry in entries:
        first = relatives.setdefault(entry.relative, entry)
        if first is not entry:
            duplicates.append(f"'{entry.relative}' means {first.path}; {entry.path} is hidden")
        if stems.setdefault(entry.name, entry) is not entry:
            same.setdefault(entry.name, []).append(entry)
    aliases: dict[str, Entry] = {}
    for entry in entries:
        if not entry.alias or entry.alias == entry.name:
            continue
        owner = stems.get(entry.alias) or aliases.setdefault(entry.alias, entry)
        if owner is not entry:
            duplicates.append(
                f"'{entry.alias}', the alias of {entry.path}, means {owner.path};"
                f" write '{entry.name}' for the first"
            )
    for stem, others in same.items():
        reachable = [each for each in (stems[stem], *others) if relatives[each.relative] is each]
        if len(reachable) > 1:
            duplicates.append(_said(stem, reachable))
    # a file at the top of its folder has its stem as its path, and so comes before one below
    return _Names(relatives, stems, aliases), duplicates


def _said(stem: str, same: Sequence[Entry]) -> str:
    top = next((entry for entry in same if entry.relative == stem), same[0])
    others = ", ".join(f"{e.path} ('{e.relative}')" for e in same if e is not top)
    return f"'{stem}' means {top.path}; for the others write their folder too: {others}"
