"""One walk over the network folders: every file and what lies beside it, without opening any.

Every file's size and time are asked for at each walk, so that one written to in place (a resumed
download, notes edited elsewhere) is noticed; a folder's own time would not tell. That is most of
what a walk costs. All else is kept from the walk before, folder by folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from extensions_lib.files.cache import Identity
from extensions_lib.files.embedding_pictures import PICTURES

# What may lie beside a file named STEM.suffix: for each field of `Sidecars`, best first.
_BESIDE: tuple[tuple[str, ...], ...] = (
    tuple(
        f"{middle}.{suffix}"
        for middle in ("", ".preview")
        for suffix in ("png", "jpg", "jpeg", "webp", "gif")
    ),
    (".txt", ".description.txt"),
    (".json",),
    (".civitai.info",),
)
_FIELDS = {ending: number for number, endings in enumerate(_BESIDE) for ending in endings}
_RANKS = {ending: rank for endings in _BESIDE for rank, ending in enumerate(endings)}

Files = Mapping[str, Identity]  # what a folder holds, by name


class Sidecars(NamedTuple):
    """The files beside a network: their paths."""

    preview: str | None = None
    notes: str | None = None  # stem.txt or stem.description.txt
    user: str | None = None  # stem.json
    civitai: str | None = None  # stem.civitai.info


_NONE = Sidecars()


class Found(NamedTuple):
    """A file as the walk saw it; while nothing of it changes, every walk gives the same object."""

    path: str  # begins with the folder that was given
    stem: str
    relative: str  # path within its folder, "/"-separated, without suffix
    identity: Identity
    sidecars: Sidecars


@dataclass
class _Folder:
    """A folder as it was last seen."""

    files: Files = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)  # by name, in order


class Walker:
    """Walks the folders, and remembers what it saw."""

    def __init__(self, folders: Sequence[Path], suffixes: Sequence[str]) -> None:
        self._roots = [os.path.abspath(folder) for folder in folders]
        self._suffixes = frozenset(suffixes)
        self._seen: dict[tuple[str, str], _Folder] = {}  # by root and folder

    def walk(self, problems: list[str]) -> list[Found]:
        """Every file of these suffixes, folder by folder in their order, by name.

        A picture that is the preview of another such file is none. A file reached twice (folders
        in one another, links) comes once. A folder that is not there is empty; one that cannot be
        read, and a link to nothing, is said in `problems`.
        """
        seen: dict[tuple[str, str], _Folder] = {}
        found: list[Found] = []
        reals: dict[str, str] = {}  # what the folders really are, behind links
        links: dict[str, str] = {}  # where the files that are links lead
        for root in self._roots:
            for path, files in self._folders(root, reals, links, problems):
                folder = self._look(root, path, files, self._seen.get((root, path)) or _Folder())
                seen[root, path] = folder
                found += folder.found.values()
        self._seen = seen
        return _once(found, reals, links) if links else found

    def _folders(
        self, root: str, reals: dict[str, str], links: dict[str, str], problems: list[str]
    ) -> Iterator[tuple[str, Files]]:
        """Each folder that is not in `reals` yet, and the files in it."""
        waiting = [root]
        known = set(reals.values())
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder)
            if real in known:  # a link that leads back up, or a folder given twice
                continue
            known.add(real)
            reals[folder] = real
            try:
                with os.scandir(folder) as listing:
                    items = [item for item in listing if item.name[0] != "."]
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append(f"{folder}: cannot be read ({error.strerror})")
                continue
            files: dict[str, Identity] = {}
            below = []
            for item in items:
                try:
                    if item.is_dir():
                        below.append(item.path)
                        continue
                    if item.is_symlink():
                        links[item.path] = os.path.realpath(item.path)
                    there = item.stat()
                except OSError as error:  # removed meanwhile, or a link to nothing
                    if os.path.splitext(item.name)[1].lower() in self._suffixes:
                        problems.append(f"{item.path}: cannot be read ({error.strerror})")
                    continue
                files[item.name] = (there.st_size, there.st_mtime_ns)
            yield folder, files
            waiting += sorted(below, reverse=True)

    def _look(self, root: str, path: str, files: Files, before: _Folder) -> _Folder:
        if files == before.files:
            return before
        below = os.path.relpath(path, root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        inside = os.path.join(path, "")
        touched: set[str] = set()
        if before.files:
            for name, _ in files.items() ^ before.files.items():
                touched |= {name[: name.rfind(".")], *(stem for stem, _ in _belonging(name))}
        beside = _beside(files)
        found = {}
        for name in sorted(files):
            stem, _, suffix = name.rpartition(".")
            if stem and f".{suffix.lower()}" in self._suffixes:
                known = before.found.get(name)
                if known is None or stem in touched:
                    if self._is_preview(stem, suffix, files):
                        continue
                    names = beside.get(stem)
                    own = Sidecars(*(each and inside + each for each in names)) if names else _NONE
                    known = Found(inside + name, stem, prefix + stem, files[name], own)
                found[name] = known
        return _Folder(files, found)

    def _is_preview(self, stem: str, suffix: str, files: Files) -> bool:
        """Whether a picture is only the preview of a file beside it, or named as one."""
        if f".{suffix.lower()}" not in PICTURES:
            return False
        others = self._suffixes.difference(PICTURES)
        return stem.lower().endswith(".preview") or any(stem + other in files for other in others)


def _once(
    found: Sequence[Found], reals: Mapping[str, str], links: Mapping[str, str]
) -> list[Found]:
    """Without files that a link has led to before."""
    kept: dict[str, Found] = {}
    for item in found:
        folder, name = os.path.split(item.path)
        kept.setdefault(links.get(item.path) or os.path.join(reals[folder], name), item)
    return list(kept.values())


def _belonging(name: str) -> Iterator[tuple[str, str]]:
    """The stems that a file of this name may lie beside, with what follows them."""
    last = name.rfind(".")
    for dot in (last, name.rfind(".", 0, last)):  # no ending has more than two
        if dot > 0 and name[dot:] in _FIELDS:
            yield name[:dot], name[dot:]


def _beside(files: Files) -> dict[str, list[str | None]]:
    """What lies beside files of these stems: names, a place for each field of `Sidecars`."""
    beside: dict[str, list[str | None]] = {}
    for name in files:
        for stem, ending in _belonging(name):
            places = beside.setdefault(stem, [None] * len(_BESIDE))
            field = _FIELDS[ending]
            other = places[field]
            if other is None or _RANKS[ending] < _RANKS[other[len(stem) :]]:
                places[field] = name
    return beside
