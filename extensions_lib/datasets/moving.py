"""Pictures moved to another folder with their captions; nothing there is written over.

done = move(Path("photos"), Path("photos/5_good"), ["a.png", "b.png"])
move(done.target, done.source, done.names)                  # and back
"""

from __future__ import annotations

import filecmp
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from extensions_lib.atomic import reason
from extensions_lib.datasets import captions, pictures
from extensions_lib.datasets.at_once import Note
from extensions_lib.errors import CrucibleError


class MoveProblem(CrucibleError):
    """A picture, or all of them, that cannot be moved."""


@dataclass(frozen=True)
class Moving:
    """What was moved from `source` to `target`, by path within both, and what stayed and why.

    A picture may be in both: its caption could be copied, but not taken away.
    """

    source: Path
    target: Path
    names: tuple[str, ...]
    stayed: tuple[Note, ...] = ()


def move(source: Path, target: Path, names: Iterable[str]) -> Moving:
    """Moves pictures, each with its captions, to the same paths below `target`.

    A caption that a picture which stays has too is copied. A picture stays, whole, where something
    else of its name is there already or a file cannot be moved. Raises MoveProblem where the
    folders are the same one or `target` cannot be made.
    """
    if source.resolve() == target.resolve():
        raise MoveProblem(f"{target}: is where the pictures are; name another folder.")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoveProblem(f"{target}: cannot be made ({reason(error)}); name another.") from error
    sharing = _Sharing(source)
    moved: list[str] = []
    stayed: list[Note] = []
    for name in names:
        try:
            left = _move_one(source, target, name, shared=sharing.count(name) > 1)
        except MoveProblem as problem:
            stayed.append(Note(name, str(problem)))
        else:
            moved.append(name)
            stayed += [Note(name, why) for why in left]
            sharing.leave(name)
    return Moving(source, target, tuple(moved), tuple(stayed))


def _move_one(source: Path, target: Path, name: str, shared: bool) -> list[str]:
    """`shared`: a picture that stays has the same captions. What could not be taken away."""
    picture, into = source / name, target / name
    texts = [
        (path, into.with_name(path.name))
        for path in (picture.with_suffix(suffix) for suffix in captions.SUFFIXES)
        if path.exists()
    ]
    if into.exists():
        raise MoveProblem(f"{into}: is there already; {name} stays.")
    new: list[Path] = []
    try:
        for text, there in texts:
            if not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(text, there)
                new.append(there)
            elif not filecmp.cmp(text, there, shallow=False):
                raise MoveProblem(f"{there}: is another caption; {name} stays.")
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(picture, into)
    except (OSError, MoveProblem) as error:
        for path in (*new, into):  # also what was copied half of it
            if picture.exists():
                path.unlink(missing_ok=True)
        if isinstance(error, MoveProblem):
            raise
        raise MoveProblem(f"{picture}: cannot be moved ({reason(error)}).") from error
    left = []
    for text, _ in () if shared else texts:
        try:
            text.unlink()
        except OSError as error:  # on Windows: another program has it open
            left.append(f"{text}: is copied, and stays too ({reason(error)}).")
    return left


class _Sharing:
    """How many pictures of a folder have a name but for its suffix, and so one caption."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: dict[str, Counter[str]] = {}  # by folder below

    def _of(self, name: str) -> tuple[Counter[str], str]:
        path = self._folder / name
        below = str(path.parent)
        if below not in self._counts:
            found = (other for other in path.parent.iterdir() if pictures.is_picture(other))
            self._counts[below] = Counter(other.stem for other in found)
        return self._counts[below], path.stem

    def count(self, name: str) -> int:
        """That of a picture's name."""
        counts, stem = self._of(name)
        return counts[stem]

    def leave(self, name: str) -> None:
        """The picture is there no more."""
        counts, stem = self._of(name)
        counts[stem] -= 1
