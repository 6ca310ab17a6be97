"""The Tagger's rules without their page: what an order does to the rules of a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from extensions_lib.datasets import captions, rules
from extensions_lib.datasets.rules import Rule, RuleFile, Rules
from extensions_lib.datasets.tag_set import Preview, TagSet
from extensions_lib.errors import CrucibleError
from extensions_lib.ui.tagger_pieces import counted

Order = Mapping[str, Any]
LISTS = ("tags", "unless", "add", "drop")


@dataclass(frozen=True)
class Answer:
    """What an order did. `redraw`: the list of rules is another; `typed` are problems by place of
    rules as they were typed, which are not kept.
    """

    rules: tuple[Rule, ...]
    said: tuple[str, ...] = ()
    problem: str = ""
    changed: int | None = None  # the rule whose form was told
    typed: Mapping[int, str] = field(default_factory=dict)
    preview: Preview | None = None
    redraw: bool = False


class RuleBook:
    """The rules kept with a set, read anew for each order; `picked` are pictures of the editor."""

    def __init__(self, tag_set: TagSet, folder: Path, picked: frozenset[str] = frozenset()) -> None:
        self.tag_set, self.folder, self.picked = tag_set, folder, picked
        self.file: RuleFile = rules.load(folder)  # raises RuleProblem

    def do(self, order: Order) -> Answer:
        """Follows an order; what cannot be done is said, and no rule is lost."""
        act = _ACTS.get(str(order.get("do")))
        if act is None:
            return Answer(self.file.rules, problem=f"There is no order {order.get('do')!r}.")
        try:
            return act(self, order)
        except CrucibleError as problem:
            return Answer(self.file.rules, problem=str(problem))

    def keep(self, kept: list[Rule], redraw: bool = True) -> Answer:
        """Writes the rules with the set. Raises FileProblem."""
        self.file = replace(self.file, rules=tuple(kept))
        rules.save(self.folder, self.file)
        return Answer(self.file.rules, redraw=redraw)

    def count(self, place: int) -> int:
        """How many captions a rule alone would change, also one that is off."""
        return len(self.preview([replace(self.file.rules[place], on=True)]).changes)

    def preview(self, some: list[Rule] | None = None) -> Preview:
        """What rules, else all that are on, would change. Raises CrucibleError."""
        chosen = list(self.file.rules) if some is None else some
        return self.tag_set.preview(Rules(chosen).edit())


def typed_rule(order: Order, before: Rule) -> Rule:
    """A rule as it stands in its form. Raises CrucibleError for a filter that is none."""
    scope, where = str(order["scope"]), str(order.get("where") or "")
    lines = [line.strip() for line in where.splitlines() if line.strip()]
    if scope == "filter":
        lines = [" ".join(lines)]
    lists: dict[str, Any] = {
        each: tuple(captions.split(str(order.get(each) or ""))) for each in LISTS
    }
    made = replace(
        before,
        name=str(order.get("name") or "").strip(),
        match=str(order["match"]),
        keep=order["keep"] == "keep",
        place=str(order["place"]),
        scope=scope,
        where=() if scope == "all" else tuple(lines),
        on=bool(order.get("on")),
        **lists,
    )
    Rules([replace(made, on=True)])
    return made


# --- what an order does -----------------------------------------------------------------------


def _change(book: RuleBook, order: Order) -> Answer:
    place, kept = int(order["value"]), list(book.file.rules)
    try:
        kept[place] = typed_rule(order, kept[place])
    except CrucibleError as problem:
        return Answer(book.file.rules, typed={place: f"not kept: {problem}"}, changed=place)
    return replace(book.keep(kept, redraw=False), changed=place)


def _new(book: RuleBook, _: Order) -> Answer:
    return book.keep([*book.file.rules, Rule()])


def _move(by: int) -> Callable[[RuleBook, Order], Answer]:
    def move(book: RuleBook, order: Order) -> Answer:
        place, kept = int(order["value"]), list(book.file.rules)
        to = min(max(0, place + by), len(kept) - 1)
        kept.insert(to, kept.pop(place))
        return book.keep(kept)

    return move


def _drop(book: RuleBook, order: Order) -> Answer:
    kept = list(book.file.rules)
    del kept[int(order["value"])]
    return book.keep(kept)


def _copy(book: RuleBook, order: Order) -> Answer:
    place, kept = int(order["value"]), list(book.file.rules)
    kept.insert(place + 1, kept[place])
    return book.keep(kept)


def _take(book: RuleBook, order: Order) -> Answer:
    place, kept = int(order["value"]), list(book.file.rules)
    if not book.picked:
        raise CrucibleError("No picture is picked: pick some in Edit first.")
    named = tuple(name for name in book.tag_set.names if name in book.picked)
    kept[place] = replace(kept[place], scope="pictures", where=named)
    return book.keep(kept)


def _show(book: RuleBook, order: Order) -> Answer:
    place = str(order.get("value"))
    some = None if place == "all" else [replace(book.file.rules[int(place)], on=True)]
    return Answer(book.file.rules, preview=book.preview(some))


def _apply(book: RuleBook, _: Order) -> Answer:
    count = book.tag_set.apply(book.preview())
    return Answer(book.file.rules, (f"{counted(count, 'caption')} changed.",))


def _undo(book: RuleBook, _: Order) -> Answer:
    moved = book.tag_set.undo()
    said = f"Undo: {moved.entry.title}" if moved else "There is nothing to undo."
    return Answer(book.file.rules, (said,))


def _open(book: RuleBook, _: Order) -> Answer:
    return Answer(book.file.rules, redraw=True)


_ACTS: dict[str, Callable[[RuleBook, Order], Answer]] = {
    "open": _open,
    "change": _change,
    "new": _new,
    "up": _move(-1),
    "down": _move(1),
    "drop": _drop,
    "copy": _copy,
    "take": _take,
    "show": _show,
    "apply": _apply,
    "undo": _undo,
}
