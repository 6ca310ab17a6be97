"""What is wrong with pictures before they are trained on: broken, too small, twice there."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extensions_lib.datasets.at_once import Note, Progress, at_once
from extensions_lib.datasets.duplicates import NEAR, Fingerprint, alike, fingerprint
from extensions_lib.datasets.pictures import open_picture, orientation
from extensions_lib.errors import CrucibleError

_LEAST = 128  # pixels of the longer side from which a fingerprint is taken


@dataclass(frozen=True)
class Survey:
    """What a survey found. `sizes` in pixels (width, height) of all that can be read.

    `duplicates`: groups of pictures that look alike, in each the largest first.
    """

    sizes: dict[Path, tuple[int, int]]
    broken: tuple[Note, ...]
    too_small: tuple[Path, ...]
    duplicates: tuple[tuple[Path, ...], ...]
    stopped: bool = False


def survey(
    paths: Sequence[Path],
    smallest: int = 0,
    most_bits: int | None = NEAR,
    *,
    threads: int | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Survey:
    """Looks at all pictures: which cannot be decoded, which have a side shorter than `smallest`
    pixels, and which look alike with at most `most_bits` of 256 different (None: not asked).
    """
    sizes: dict[Path, tuple[int, int]] = {}
    prints: dict[Path, Fingerprint] = {}
    broken = []
    for path, found in at_once(_look, paths, threads, on_progress, stop):
        if isinstance(found, CrucibleError):
            broken.append(Note(str(path), str(found)))
        else:
            sizes[path], prints[path] = found
    small = [path for path, size in sizes.items() if min(size) < smallest]
    there = list(prints)
    groups = [] if most_bits is None else alike(list(prints.values()), most_bits)
    duplicates = [_largest_first([there[i] for i in group], sizes) for group in groups]
    stopped = stop is not None and stop.is_set()
    return Survey(sizes, tuple(broken), tuple(small), tuple(duplicates), stopped)


def _look(path: Path) -> tuple[tuple[int, int], Fingerprint]:
    seen = fingerprint(open_picture(path, least=_LEAST))  # says what is wrong with a broken one
    return _size(path), seen


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a picture that can be opened, as its EXIF orientation turns it."""
    size, turn = _header(path)
    return size[::-1] if turn >= 5 else size


def is_upright(path: Path) -> bool:
    """Whether a picture that can be opened needs no turning."""
    return _header(path)[1] == 1


def _header(path: Path) -> tuple[tuple[int, int], int]:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size, orientation(picture)


def _largest_first(group: list[Path], sizes: dict[Path, tuple[int, int]]) -> tuple[Path, ...]:
    def key(path: Path) -> tuple[int, int]:
        width, height = sizes[path]
        return -width * height, -os.stat(path).st_size

    return tuple(sorted(group, key=key))
