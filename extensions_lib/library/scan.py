"""One walk over the network folders: every file and what lies beside it, without opening any."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from extensions_lib.files.cache import Identity
from extensions_lib.library.entry import Sidecars

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")
_PREVIEWS = tuple(
    f"{middle}.{suffix}"
    for middle in ("", ".preview")
    for suffix in ("png", "jpg", "jpeg", "webp", "gif")
)


@dataclass(frozen=True)
class Found:
    """A network file as the walk saw it."""

    path: Path
    relative: str
    identity: Identity
    sidecars: Sidecars


def walk(folders: Sequence[Path], problems: list[str]) -> Iterator[Found]:
    """Every network file below the folders, folder by folder in their order, sorted by name.

    A file reached twice (folders in one another, links) comes once. A folder that is not there is
    empty; one that cannot be read is said in `problems`.
    """
    seen_folders: set[str] = set()
    seen_files: set[str] = set()
    for root in folders:
        for folder, files in _folders(str(root), seen_folders, problems):
            by_name = {file.name: file for file in files}
            for name in sorted(by_name):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in SUFFIXES:
                    continue
                try:
                    real = os.path.realpath(by_name[name].path)
                    if real in seen_files:
                        continue
                    found = _found(Path(root), Path(folder) / name, stem, by_name)
                except OSError as error:  # removed meanwhile, or a link to nothing
                    problems.append(f"{by_name[name].path}: cannot be read ({error.strerror})")
                    continue
                seen_files.add(real)
                yield found


def _folders(
    root: str, seen: set[str], problems: list[str]
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
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
        yield folder, [item for item in items if item.path not in below]
        waiting += sorted(below, reverse=True)


def _found(root: Path, path: Path, stem: str, beside: dict[str, os.DirEntry[str]]) -> Found:
    def first(*endings: str) -> Path | None:
        return next((path.with_name(stem + e) for e in endings if stem + e in beside), None)

    preview = first(*_PREVIEWS)
    notes = first(".txt", ".description.txt")
    user, civitai = first(".json"), first(".civitai.info")
    identities = tuple(
        _identity(beside[item.name]) for item in (preview, notes, user, civitai) if item
    )
    relative = path.relative_to(root).with_name(stem).as_posix()
    sidecars = Sidecars(preview, notes, user, civitai, identities)
    return Found(path, relative, _identity(beside[path.name]), sidecars)


def _identity(item: os.DirEntry[str]) -> Identity:
    found = item.stat()
    return found.st_size, found.st_mtime_ns
