"""A set of pictures with captions: what the editor shows, and how it changes it.

    photos = TagSet("photos")
    chosen = photos.filter("1girl AND NOT hat")
    preview = photos.preview(edits.add("portrait"), chosen)    # before and after, nothing is done
    photos.apply(preview)                                      # one step, which can be undone
    photos.undo()

Pictures go by their path within the set, with "/". Every change goes through the set's journal; a
caption that another program changed meanwhile is noticed and left as it is.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from extensions_lib.datasets import captions, filters, pictures
from extensions_lib.datasets.at_once import Note
from extensions_lib.datasets.captions import Caption, CaptionProblem
from extensions_lib.datasets.edits import Edit
from extensions_lib.datasets.journal import Entry, Journal, Moved, Version
from extensions_lib.errors import CrucibleError

ORDERS = ("frequency", "alphabet")


@dataclass(frozen=True)
class Item:
    """A picture with its caption.

    `caption` None: it has none; `file` is the caption's path within the set, also before it exists.
    `problem` says why a caption cannot be read; such a one is never changed.
    """

    name: str
    picture: Path
    file: str
    caption: Caption | None = None
    problem: str | None = None
    tags: tuple[str, ...] = ()
    folded: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The caption with "\\n" as line end, empty if there is none."""
        return "" if self.caption is None else captions.plain_lines(self.caption.text)


@dataclass(frozen=True)
class Change:
    """What a change makes of one caption; `before` None: there is no caption yet."""

    name: str
    picture: Path
    file: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Preview:
    """What a change would do: to show, and to hand to `TagSet.apply`."""

    title: str
    changes: tuple[Change, ...]
    skipped: tuple[Note, ...] = ()
    _contents: dict[str, tuple[bytes | None, bytes]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Page:
    """Some pictures of a selection; `number` from 1 to `pages`, of `total` pictures."""

    items: tuple[Item, ...]
    number: int
    pages: int
    total: int


class TagSet:
    """The pictures of a folder and their captions. Safe to use from several threads.

    `suffix` is the captions' preferred one; a picture's caption with the other known suffix is used
    where there is no such file. Loading raises PictureProblem for a folder that cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        subfolders: bool = True,
        suffix: str = captions.SUFFIXES[0],
    ) -> None:
        if suffix not in captions.SUFFIXES:
            raise CaptionProblem(f"captions end in {' or '.join(captions.SUFFIXES)}, not {suffix}.")
        self.folder, self.subfolders, self.suffix = Path(folder), subfolders, suffix
        self.problems: list[str] = []  # folders, captions and names that something is wrong with
        self._items: dict[str, Item] = {}
        self._of_file: dict[str, list[str]] = {}
        self._lock = threading.RLock()
        self.reload()
        self.journal = Journal(self.folder)

    def reload(self) -> None:
        """Reads pictures and captions anew."""
        problems: list[str] = []
        found = pictures.find(self.folder, self.subfolders, problems)
        items = {item.name: item for path in found for item in [self._loaded(path, problems)]}
        of_file: dict[str, list[str]] = {}
        for item in items.values():
            of_file.setdefault(item.file, []).append(item.name)
        for file, names in of_file.items():
            if len(names) > 1:
                problems.append(f"{', '.join(names)}: share the caption {file}.")
        with self._lock:
            self._items, self._of_file, self.problems = items, of_file, problems

    def _loaded(self, path: Path, problems: list[str]) -> Item:
        name = path.relative_to(self.folder).as_posix()
        stem = os.path.splitext(name)[0]
        other = next(one for one in captions.SUFFIXES if one != self.suffix)
        preferred, second = stem + self.suffix, stem + other
        item = self._read(name, path, preferred)
        if item.caption is None and item.problem is None:
            found = self._read(name, path, second)
            if found.caption is not None or found.problem is not None:
                item = found
        elif os.path.exists(os.path.join(self.folder, second)):
            problems.append(f"{name}: has {preferred} and {second}; {preferred} is used.")
        if item.problem:
            problems.append(item.problem)
        return item

    def _read(self, name: str, picture: Path, file: str) -> Item:
        try:
            caption = captions.read(os.path.join(self.folder, file))
        except CaptionProblem as problem:
            return Item(name, picture, file, problem=str(problem))
        if caption is None:
            return Item(name, picture, file)
        tags = captions.split(caption.text)
        return Item(
            name, picture, file, caption, None, tuple(tags), frozenset(map(captions.fold, tags))
        )

    # --- looking --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._items)

    @property
    def names(self) -> list[str]:
        """All pictures, in order."""
        return list(self._items)

    def item(self, name: str) -> Item:
        """One picture. Raises CrucibleError where there is none of this name."""
        try:
            return self._items[name]
        except KeyError:
            raise CrucibleError(
                f"{name}: is no picture of {self.folder}; reload the set."
            ) from None

    def page(self, number: int = 1, size: int = 60, names: Sequence[str] | None = None) -> Page:
        """A page of a selection (None: of all); a number outside gives the nearest page."""
        chosen = self.names if names is None else names
        pages = max(1, -(-len(chosen) // size))
        number = min(max(1, number), pages)
        shown = chosen[(number - 1) * size : number * size]
        return Page(tuple(map(self.item, shown)), number, pages, len(chosen))

    def filter(self, text: str, names: Iterable[str] | None = None) -> list[str]:
        """Those pictures that pass a filter (see `filters`), in order. Raises FilterProblem."""
        passes = filters.parse(text)
        return [item.name for item in self._chosen(names) if passes.matches(item.folded, item.name)]

    def unknown_tags(self, text: str) -> list[str]:
        """The tags that a filter names and no caption has. Raises FilterProblem."""
        there = frozenset().union(*(item.folded for item in self._items.values()))
        return [tag for tag in filters.parse(text).tags if tag not in there]

    def frequency(
        self, names: Iterable[str] | None = None, order: str = "frequency"
    ) -> list[tuple[str, int]]:
        """Each tag as it is spelled, with the number of pictures of a selection that have it."""
        counts = Counter(chain.from_iterable(set(item.tags) for item in self._chosen(names)))
        if order == "alphabet":
            return sorted(counts.items(), key=lambda pair: (pair[0].casefold(), pair[0]))
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

    def untagged(self) -> list[str]:
        """The pictures without a caption, or with one that holds no tag."""
        return [item.name for item in self._items.values() if not item.tags and not item.problem]

    def _chosen(self, names: Iterable[str] | None) -> Iterable[Item]:
        return self._items.values() if names is None else map(self.item, names)

    # --- changing -------------------------------------------------------------------------------

    def preview(self, edit: Edit, names: Iterable[str] | None = None) -> Preview:
        """What an edit would change of a selection (None: of all); nothing is done.

        Raises EditProblem for an edit that fails over a caption.
        """
        changes: list[Change] = []
        skipped: list[Note] = []
        contents: dict[str, tuple[bytes | None, bytes]] = {}
        with self._lock:
            items = list(self._chosen(names))
        for item in items:
            if item.problem:
                skipped.append(Note(item.name, item.problem))
                continue
            if item.file in contents:  # the caption of two pictures
                continue
            old = item.caption or Caption("")
            new = old.rewritten(edit.change(item.text, item.name))
            if new == old:
                continue
            before = None if item.caption is None else item.text
            after = captions.plain_lines(new.text)
            changes.append(Change(item.name, item.picture, item.file, before, after))
            had = None if item.caption is None else item.caption.encoded
            contents[item.file] = (had, new.encoded)
        return Preview(edit.title, tuple(changes), tuple(skipped), contents)

    def apply(self, preview: Preview) -> int:
        """Does what a preview showed, as one step: all of it or, on an error, nothing.

        The number of captions that changed. Raises EditedOutside where a caption is no longer
        what the preview had, JournalProblem where the set cannot be written to.
        """
        if not preview.changes:
            return 0
        before = {file: old for file, (old, _) in preview._contents.items()}
        after = {file: new for file, (_, new) in preview._contents.items()}
        with self._lock, self.journal.step(preview.title) as step:
            written = step.write(after, expected=before)
            self._refresh(written)
        return len(written)

    def do(self, edit: Edit, names: Iterable[str] | None = None) -> int:
        """Previews and applies an edit at once."""
        return self.apply(self.preview(edit, names))

    # --- the journal ----------------------------------------------------------------------------

    def undo(self, outside: str = "refuse") -> Moved | None:
        """Takes the last step back; None if there is none. See `Journal.undo`."""
        return self._moved(self.journal.undo, outside)

    def redo(self, outside: str = "refuse") -> Moved | None:
        """Does the last undone step again; None if there is none. See `Journal.redo`."""
        return self._moved(self.journal.redo, outside)

    def finish(self, outside: str = "refuse") -> Moved | None:
        """Completes the last step if it was interrupted. See `Journal.finish`."""
        return self._moved(self.journal.finish, outside)

    def _moved(self, move: Callable[[str], Moved | None], outside: str) -> Moved | None:
        with self._lock:
            moved = move(outside)
            if moved:
                self._refresh((*moved.names, *moved.kept))
            return moved

    def go_to(self, step: int) -> None:
        """Undoes or redoes until the step with this id is the last one that is done; 0: none is.

        Raises as `undo`, at the first step that cannot be moved.
        """
        with self._lock:
            for state, move in (("done", self.undo), ("undone", self.redo)):
                for entry in self.history():
                    later = entry.id > step
                    if entry.state == state and later == (state == "done"):
                        move()

    def history(self) -> list[Entry]:
        """The steps, newest first. Raises JournalProblem."""
        return self.journal.history()

    def versions(self, name: str) -> list[Version]:
        """Every text that a picture's caption had, oldest first. Raises JournalProblem."""
        return self.journal.versions(self.item(name).file)

    def changed_outside(self) -> list[Note]:
        """Pictures whose caption is not what the journal last knew: changed by another program,
        lost or damaged. `restore` brings the known text back. Raises JournalProblem.
        """
        found = []
        for file, known in self.journal.last_known().items():
            names = self._of_file.get(file, ())
            if names and (why := self._outside(file, known)):
                found += [Note(name, why) for name in names]
        return found

    def _outside(self, file: str, known: bytes | None) -> str | None:
        try:
            now = self.journal.read(file)
            if now == known:
                return None
            if now is not None:
                captions.decoded(now, self.folder / file)
        except CaptionProblem as problem:
            return str(problem)
        return f"{file}: was {'removed' if now is None else 'changed'} by another program."

    def restore(self, names: Iterable[str]) -> int:
        """Writes what the journal last knew over these pictures' captions, as a step."""
        known = self.journal.last_known()
        files = {self.item(name).file for name in names}
        with self._lock, self.journal.step(f"Restore {len(files)} captions") as step:
            written = step.write({file: known[file] for file in files if file in known})
            self._refresh(written)
        return len(written)

    def _refresh(self, files: Iterable[str]) -> None:
        for file in files:
            for name in self._of_file.get(file, ()):
                self._items[name] = self._read(name, self._items[name].picture, file)
