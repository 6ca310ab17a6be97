"""One walk over the network folders: every file and what lies beside it, without opening any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from extensions_lib.files.cache import Identity
from extensions_lib.files.embedding_pictures import PICTURES
from extensions_lib.library.entry import Sidecars

# What may lie beside a file named STEM.suffix: for each place of `Sidecars`, best first.
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
_ENDINGS = tuple(ending for endings in _BESIDE for ending in endings)
_NOTHING = Sidecars()

Items = dict[str, os.DirEntry[str]]  # what a folder holds, by name


@dataclass(frozen=True)
class Found:
    """A file as the walk saw it; `path` begins with the folder that was given."""

    path: str
    relative: str
    identity: Identity
    sidecars: Sidecars


def walk(folders: Sequence[Path], problems: list[str], suffixes: Sequence[str]) -> Iterator[Found]:
    """Every file of these suffixes below the folders, folder by folder in their order, by name.

    A picture that is the preview of another such file is none. A file reached twice (folders in
    one another, links) comes once. A folder that is not there is empty; one that cannot be read is
    said in `problems`.
    """
    seen_folders: set[str] = set()
    seen_files: set[str] = set()
    for root in folders:
        for folder, real, files in _folders(str(root), seen_folders, problems):
            # thousands of files: no Path, and no look at the disk but for their sizes and times
            below = os.path.relpath(folder, root).replace(os.sep, "/")
            prefix = "" if below == "." else f"{below}/"
            beside = _beside(folder, files)
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in suffixes or _is_preview(stem, suffix, suffixes, files):
                    continue
                item = files[name]
                try:
                    there = os.path.join(real, name)
                    there = os.path.realpath(item.path) if item.is_symlink() else there
                    if there in seen_files:
                        continue
                    sidecars = beside.get(stem, _NOTHING)
                    found = Found(item.path, prefix + stem, _identity(item), sidecars)
                except OSError as error:  # removed meanwhile, or a link to nothing
                    problems.append(f"{item.path}: cannot be read ({error.strerror})")
                    continue
                seen_files.add(there)
                yield found


def _is_preview(stem: str, suffix: str, suffixes: Sequence[str], files: Items) -> bool:
    """Whether a picture is only the preview of a file beside it, or named as one."""
    if suffix.lower() not in PICTURES:
        return False
    others = [other for other in suffixes if other not in PICTURES]
    return stem.lower().endswith(".preview") or any(stem + other in files for other in others)


def _folders(root: str, seen: set[str], problems: list[str]) -> Iterator[tuple[str, str, Items]]:
    """Each folder, what it really is behind links, and the files in it."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up, or a folder given twice
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                items = [item for item in listing if not item.name.startswith(".")]
            below = {item.path for item in items if item.is_dir()}
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{folder}: cannot be read ({error.strerror})")
            continue
        yield folder, real, {item.name: item for item in items if item.path not in below}
        waiting += sorted(below, reverse=True)


def _beside(folder: str, files: Items) -> dict[str, Sidecars]:
    """What lies beside the files of a folder, by their stems."""
    endings: dict[str, dict[str, os.DirEntry[str]]] = {}
    for name, item in files.items():
        if name.endswith(_ENDINGS):
            for ending in _ENDINGS:
                if name.endswith(ending):
                    endings.setdefault(name[: -len(ending)], {})[ending] = item
    return {stem: _sidecars(folder, items) for stem, items in endings.items()}


def _sidecars(folder: str, items: Items) -> Sidecars:
    chosen = [next((items[e] for e in names if e in items), None) for names in _BESIDE]
    preview, notes, user, civitai = (
        None if item is None else Path(folder, item.name) for item in chosen
    )
    identities = []
    for item in chosen:
        with contextlib.suppress(OSError):  # removed meanwhile
            identities += [] if item is None else [_identity(item)]
    return Sidecars(preview, notes, user, civitai, tuple(identities))


def _identity(item: os.DirEntry[str]) -> Identity:
    found = item.stat()
    return found.st_size, found.st_mtime_ns
