"""The Tagger's editor without its page: what a window sees of a set, and what an order does to it.

An order is what the browser told: `{"do": "remove", "value": "hat"}`. Changes go to the pictures
that are picked, or, when none is, to all that pass the filter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from extensions_lib.datasets import edits
from extensions_lib.datasets.journal import EditedOutside, Moved
from extensions_lib.datasets.moving import Moving, move
from extensions_lib.datasets.tag_set import Preview, TagSet
from extensions_lib.errors import CrucibleError
from extensions_lib.ui.tagger_pieces import counted
from extensions_lib.ui.tokens import caption_tokens

PAGE = 60  # pictures
NOTHING = {
    "undo": "There is nothing to undo.",
    "redo": "There is nothing to redo.",
    "finish": "There is nothing to finish.",
}
Order = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """What a window shows of a set: kept between its orders."""

    folder: Path | None = None
    subfolders: bool = False
    filter: str = ""
    page: int = 1
    picked: frozenset[str] = frozenset()
    order: str = "frequency"  # of the tags
    find: str = ""  # a part of the tags that are listed


@dataclass(frozen=True)
class Done:
    """What an order did. `changed`: captions; `redraw`: the gallery is another.

    `said` are sentences, `problem` says why nothing was done, `outside` that a step met captions
    of another program: which step, "undo" or "redo". `preview` is what an edit would do, `moving`
    what was moved and can be brought back.
    """

    view: View
    said: tuple[str, ...] = ()
    problem: str = ""
    outside: str = ""
    preview: Preview | None = None
    moving: Moving | None = None
    changed: bool = False
    redraw: bool = False


class Desk:
    """A set, and a window's view of it; `path` is what a folder, as typed, means."""

    def __init__(
        self, tag_set: TagSet, view: View, path: Callable[[str], Path] | None = None
    ) -> None:
        self.tag_set, self.view = tag_set, view
        self.path = path or tag_set.folder.joinpath

    @cached_property
    def shown(self) -> list[str]:
        """The pictures that pass the filter. Raises FilterProblem."""
        if not self.view.filter.strip():
            return self.tag_set.names
        return self.tag_set.filter(self.view.filter)

    @cached_property
    def picked(self) -> list[str]:
        """Those of them that are picked, in order."""
        return [name for name in self.shown if name in self.view.picked]

    @property
    def targets(self) -> list[str]:
        """The pictures that a change goes to."""
        return self.picked or self.shown

    def do(self, order: Order) -> Done:
        """Follows an order; what cannot be done is said, and nothing is lost."""
        act = _ACTS.get(str(order.get("do")))
        if act is None:
            return Done(self.view, problem=f"There is no order {order.get('do')!r}.")
        try:
            return act(self, order)
        except EditedOutside as problem:
            moving = str(order["do"]) if order["do"] in ("undo", "redo") else ""
            return Done(self.view, problem=str(problem), outside=moving)
        except CrucibleError as problem:
            return Done(self.view, problem=str(problem))

    def see(self, **changes: Any) -> Done:
        """Another view of the same set."""
        return Done(replace(self.view, **changes), redraw=True)

    def edit(self, edit: edits.Edit, names: list[str] | None = None) -> Done:
        """An edit over the targets, done at once."""
        preview = self.tag_set.preview(edit, self.targets if names is None else names)
        count = self.tag_set.apply(preview)
        said = [f"{note.name}: {note.reason}" for note in preview.skipped]
        if not preview.changes:
            return Done(self.view, ("No caption changes by that.", *said))
        told = f"{counted(count, 'caption')} changed." if names is None else ""
        return Done(self.view, (*filter(None, [told]), *said), changed=True, redraw=True)

    def put(self, source: Path, target: Path, names: Iterable[str]) -> Done:
        """Pictures moved, with their captions, and the set read anew."""
        moving = move(source, target, names)
        self.tag_set.reload()
        said = [note.reason for note in moving.stayed]
        if moving.names:
            said = [f"{counted(len(moving.names), 'picture')} moved.", f"Now in {target}.", *said]
        there = frozenset(self.tag_set.names)
        view = replace(self.view, picked=self.view.picked & there)
        return Done(view, tuple(said), moving=moving, changed=True, redraw=True)

    def moved(self, moved: Moved | None, word: str) -> Done:
        """What to say of an undo or redo."""
        if moved is None:
            return Done(self.view, (NOTHING[word],))
        said = [f"{word.capitalize()}: {moved.entry.title}"]
        if moved.kept:
            stayed = counted(len(moved.kept), "caption")
            said.append(f"{stayed} stayed as another program left them.")
        return Done(self.view, tuple(said), changed=True, redraw=True)


# --- what an order does -----------------------------------------------------------------------


def _filter(desk: Desk, order: Order) -> Done:
    view = replace(desk.view, filter=str(order.get("filter") or ""), page=1)
    there = Desk(desk.tag_set, view)
    said = []
    if not there.shown and view.filter.strip():  # a filter that is none raises here
        unknown = desk.tag_set.unknown_tags(view.filter)
        said = [f"No caption has the tag {tag}." for tag in unknown[:5]]
    picked = view.picked & frozenset(there.shown)
    return Done(replace(view, picked=picked), tuple(said), redraw=True)


def _tags(desk: Desk, order: Order) -> Done:
    """Which tags are listed, and how."""
    found = str(order.get("find") or "")
    return Done(replace(desk.view, find=found, order=str(order["order"])))


def _pick(desk: Desk, order: Order) -> Done:
    """The picked ones among those that the browser shows."""
    picked = desk.view.picked - frozenset(order["of"]) | frozenset(order["names"])
    return Done(replace(desk.view, picked=picked))


def _add(desk: Desk, order: Order) -> Done:
    after = edits_number(order.get("after"))
    return desk.edit(edits.add(str(order["tags"]), str(order.get("place") or "end"), after))


def edits_number(value: Any) -> int:
    """A count as typed; empty is none. Raises CrucibleError."""
    text = str(value or "").strip()
    if not text:
        return 0
    if not text.isdigit():
        raise CrucibleError(f"{text}: is no count of tags; type a whole number.")
    return int(text)


def _replacement(order: Order) -> edits.Edit:
    return edits.replace(
        str(order.get("search") or ""),
        str(order.get("by") or ""),
        str(order.get("how") or "literal"),
        whole_tags=bool(order.get("whole")),
        ignore_case=bool(order.get("ignore_case")),
    )


def _try(desk: Desk, order: Order) -> Done:
    preview = desk.tag_set.preview(_replacement(order), desk.targets)
    return Done(desk.view, preview=preview)


def _sort(desk: Desk, order: Order) -> Done:
    edit = edits.sort(
        str(order.get("by") or "alphabet"),
        frequency=dict(desk.tag_set.frequency()),
        keep_first=edits_number(order.get("first")),
        backwards=bool(order.get("backwards")),
    )
    return desk.edit(edit)


def _shorten(desk: Desk, order: Order) -> Done:
    return desk.edit(edits.shorten(edits_number(order.get("most")), caption_tokens))


def _put(desk: Desk, order: Order) -> Done:
    """Moves what is picked or passes; not all, which nobody has chosen."""
    if not desk.picked and not desk.view.filter.strip():
        raise CrucibleError("Pick the pictures that are to be moved, or filter them.")
    return desk.put(desk.tag_set.folder, desk.path(str(order.get("to") or "")), desk.targets)


def _put_back(desk: Desk, order: Order) -> Done:
    back = json.loads(str(order["value"]))
    names = [str(name) for name in back["names"]]
    if any(PurePath(name).is_absolute() or ".." in PurePath(name).parts for name in names):
        raise CrucibleError("These are no pictures of the set.")
    return desk.put(desk.path(str(back["from"])), desk.tag_set.folder, names)


def _write(desk: Desk, order: Order) -> Done:
    name = str(order["value"])
    return desk.edit(edits.write({name: str(order["text"])}), [name])


def _move(word: str, outside: str = "refuse") -> Callable[[Desk, Order], Done]:
    def move(desk: Desk, _: Order) -> Done:
        return desk.moved(getattr(desk.tag_set, word)(outside), word)

    return move


def _go(desk: Desk, order: Order) -> Done:
    desk.tag_set.go_to(int(order["value"]))
    return Done(desk.view, changed=True, redraw=True)


def _finish(desk: Desk, _: Order) -> Done:
    return desk.moved(desk.tag_set.finish(), "finish")


def _restore(desk: Desk, _: Order) -> Done:
    names = [note.name for note in desk.tag_set.changed_outside()]
    count = desk.tag_set.restore(names)
    said = f"{counted(count, 'caption')} changed."
    return Done(desk.view, (said,), changed=True, redraw=True)


def _reload(desk: Desk, _: Order) -> Done:
    desk.tag_set.reload()
    there = frozenset(desk.tag_set.names)
    said = tuple(desk.tag_set.problems)
    return replace(desk.see(picked=desk.view.picked & there), said=said, changed=True)


_ACTS: dict[str, Callable[[Desk, Order], Done]] = {
    "reload": _reload,
    "filter": _filter,
    "page": lambda desk, order: desk.see(page=int(order["value"])),
    "tags": _tags,
    "pick": _pick,
    "all": lambda desk, _: desk.see(picked=frozenset(desk.shown)),
    "none": lambda desk, _: desk.see(picked=frozenset()),
    "add": _add,
    "give": lambda desk, order: desk.edit(edits.add(str(order["value"]))),
    "remove": lambda desk, order: desk.edit(edits.remove([str(order["value"])])),
    "rename": lambda desk, order: desk.edit(edits.rename(str(order["value"]), str(order["to"]))),
    "try": _try,
    "replace": lambda desk, order: desk.edit(_replacement(order)),
    "dedupe": lambda desk, _: desk.edit(edits.dedupe()),
    "sort": _sort,
    "shorten": _shorten,
    "from-names": lambda desk, _: desk.edit(edits.from_names()),
    "put": _put,
    "put-back": _put_back,
    "write": _write,
    "undo": _move("undo"),
    "undo-keep": _move("undo", "keep"),
    "undo-over": _move("undo", "overwrite"),
    "redo": _move("redo"),
    "redo-keep": _move("redo", "keep"),
    "redo-over": _move("redo", "overwrite"),
    "go": _go,
    "finish": _finish,
    "restore": _restore,
}
