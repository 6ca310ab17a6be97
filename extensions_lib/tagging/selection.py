"""From a picture's scores to its tags: thresholds, lists, order and spelling.

Pure: the same scores and the same `Selection` always give the same caption, so that moving a
threshold needs no model.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from extensions_lib.datasets.captions import fold
from extensions_lib.options import OptionProblem, option
from extensions_lib.tagging.labels import CATEGORIES

if TYPE_CHECKING:
    from extensions_lib.tagging.labels import Label

Array = np.ndarray[Any, Any]
Sparse = tuple[Array, Array]  # the labels' indices, their scores; all others are zero

RATING = "rating"
# Tags whose underscores draw a face or a figure.
KAOMOJI = (
    *("0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9"),
    *(">_o", "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||"),
)
FALLBACK = {"general": 0.35, "character": 0.85}
MCUT_FLOOR = 0.15  # for every category but general
_BRACKETS = re.compile(r"([\\()\[\]])")


@dataclass(frozen=True)
class Selection:
    """What becomes of scores. Names in lists are matched in any case, with _ or a space."""

    general: float | None = option(
        None, "score from which a general tag is written; none: the model's own", low=0, high=1
    )
    character: float | None = option(
        None, "the same for names of characters; none: the model's own", low=0, high=1
    )
    trigger: str = option("", "written first in every caption, as typed")
    exclude: tuple[str, ...] = option((), "tags that are never written")
    additional: tuple[str, ...] = option((), "written last in every caption, as typed")

    thresholds: tuple[str, ...] = option(
        (), "scores of other categories, each as artist=0.5", group="Thresholds"
    )
    mcut: bool = option(
        False,
        "find each picture's thresholds by itself, at the largest gap between its scores (MCut)",
        group="Thresholds",
        label="MCut",
    )
    categories: tuple[str, ...] = option(
        ("general", "character", "copyright", "species"),
        "kinds of tags that are written; rating adds the likeliest rating",
        group="Thresholds",
    )
    max_tags: int | None = option(
        None, "at most so many tags of the model, the likeliest", low=1, group="Thresholds"
    )

    keep: tuple[str, ...] = option(
        (), "tags that are never excluded or cut off, written from keep_from", group="Lists"
    )
    keep_from: float = option(
        0.1, "score from which a tag on the keep list is written", low=0, high=1, group="Lists"
    )
    replace: tuple[str, ...] = option(
        (), "tags written otherwise, each as old -> new; an empty new drops it", group="Lists"
    )
    match: str = option(
        "literal",
        "how exclude, keep and replace read their tags; a regex matches whole tags",
        choices=("literal", "glob", "regex"),
        group="Lists",
    )

    sort: str = option(
        "score",
        "order of the tags; frequency: those first that most pictures have",
        choices=("score", "alphabet", "frequency", "model"),
        group="Spelling",
    )
    spaces: bool = option(True, "spaces instead of underscores", group="Spelling")
    kaomoji: tuple[str, ...] = option(
        KAOMOJI, "tags that keep their underscores", group="Spelling", label="Kaomoji"
    )
    escape: bool = option(
        False, r"brackets as \( \), for prompts; captions for training need none", group="Spelling"
    )
    weighted: bool = option(
        False, "with scores as weights, (tag:0.98), brackets escaped", group="Spelling"
    )


class Tag(NamedTuple):
    """A chosen tag as it is spelled, without escapes; `category` may be trigger or additional."""

    text: str
    score: float
    category: str


@dataclass(frozen=True)
class Selected:
    """What was chosen: the likeliest rating, if the model has any, and the tags in order.

    `sentences` are a captioner's, for a caption of both.
    """

    rating: tuple[str, float] | None
    tags: tuple[Tag, ...]
    sentences: tuple[str, ...] = ()


class Selector:
    """A `Selection` made ready for one list of labels, to be used on many pictures.

    `thresholds` are the model's own by category, `frequency` counts pictures by tag text (for that
    order). Raises OptionProblem for a list entry or pattern that cannot be read, and for a category
    that there is none of.
    """

    def __init__(
        self,
        labels: Sequence[Label],
        selection: Selection,
        *,
        thresholds: Mapping[str, float] | None = None,
        frequency: Mapping[str, int] | None = None,
    ) -> None:
        self.selection = selection
        self.frequency = frequency or {}
        self.names = [label.name for label in labels]
        self.kinds = sorted({label.category for label in labels})
        wanted = {_known(kind, self.kinds) for kind in selection.categories}
        number = {kind: index for index, kind in enumerate(self.kinds)}
        self.category = np.array([number[label.category] for label in labels], np.intp)
        self.sizes = np.bincount(self.category, minlength=len(self.kinds))
        named = {_known(kind, self.kinds): low for kind, low in _thresholds(selection).items()}
        own = {**(thresholds or {}), **named}
        self.least = np.array([_least(kind, own) for kind in self.kinds], np.float32)
        self.written = np.array([kind in wanted for kind in self.kinds], bool)
        self.rating = number.get(RATING, -1)
        keep, exclude = _matcher(selection.keep, selection), _matcher(selection.exclude, selection)
        self.kept = np.array([keep(name) for name in self.names], bool)
        self.excluded = np.array([exclude(name) for name in self.names], bool) & ~self.kept
        self.texts = _texts(self.names, selection)
        self.keys = [fold(each) for each in self.texts]
        self.label_kinds = [label.category for label in labels]
        trigger = selection.trigger.strip()
        self.trigger = [Tag(trigger, 1.0, "trigger")] if trigger else []
        self.trigger_key = fold(trigger)
        added = {fold(each): Tag(each, 1.0, "additional") for each in selection.additional}
        self.additional = {key: tag for key, tag in added.items() if key != self.trigger_key}

    def select(self, values: Array | Sparse) -> Selected:
        """The tags of one picture; `values` [labels] in 0..1, or those that are not zero."""
        if isinstance(values, tuple):
            indices, scores = values[0].astype(np.intp), values[1].astype(np.float32)
        else:
            indices, scores = np.arange(len(values)), np.asarray(values, np.float32)
        kinds = self.category[indices]
        chosen, rating = self._chosen(indices, scores, kinds), None
        likeliest = self._likeliest_rating(scores, kinds)
        if likeliest is not None:
            rating = self.names[int(indices[likeliest])], float(scores[likeliest])
            chosen[likeliest] |= self.written[self.rating]
        chosen &= ~self.excluded[indices] & (scores > 0)
        indices, scores = indices[chosen], scores[chosen]
        order = np.argsort(-scores, kind="stable")
        if self.selection.max_tags is not None:
            kept = self.kept[indices[order]]
            order = order[kept | (np.cumsum(~kept) <= self.selection.max_tags)]
        return Selected(rating, self._tags(indices[order].tolist(), scores[order].tolist()))

    def _likeliest_rating(self, scores: Array, kinds: Array) -> int | None:
        """Where among the scores it stands, or None."""
        places = np.flatnonzero((kinds == self.rating) & (scores > 0))
        return int(places[np.argmax(scores[places])]) if len(places) else None

    def _chosen(self, indices: Array, scores: Array, kinds: Array) -> Array:
        """Which of the scores reach the threshold of their category."""
        least = self._cuts(scores, kinds) if self.selection.mcut else self.least
        chosen = (scores >= least[kinds]) & self.written[kinds] & (kinds != self.rating)
        return chosen | (self.kept[indices] & (scores >= np.float32(self.selection.keep_from)))

    def _cuts(self, scores: Array, kinds: Array) -> Array:
        """MCut for each category: midway across the largest gap between neighbouring scores.

        Largeron, Moulin, Géry: MCut: A Thresholding Strategy for Multi-label Classification (2012).
        """
        cuts = self.least.copy()
        for kind, name in enumerate(self.kinds):
            own = np.sort(scores[kinds == kind])
            if len(own) < self.sizes[kind]:
                own = np.insert(own, 0, np.float32(0))  # the labels that are not listed
            if len(own) > 1:
                widest = len(own) - 2 - int(np.argmax(np.diff(own)[::-1]))
                cuts[kind] = (own[widest] + own[widest + 1]) / 2
                if name != "general":
                    cuts[kind] = max(cuts[kind], MCUT_FLOOR)
        return cuts

    def _tags(self, indices: list[int], scores: list[float]) -> tuple[Tag, ...]:
        """Spelled, each once, in the order that was asked for; scores come in falling order."""
        found: dict[str, tuple[int, float]] = {}
        for index, score in zip(indices, scores, strict=True):
            found.setdefault(self.keys[index], (index, score))
        for key in (self.trigger_key, ""):
            found.pop(key, None)
        rows = [
            (index, Tag(self.texts[index], score, self.label_kinds[index]))
            for index, score in found.values()
        ]
        if order := self._order():
            rows.sort(key=order)
        added = [tag for key, tag in self.additional.items() if key not in found]
        return (*self.trigger, *(tag for _, tag in rows), *added)

    def _order(self) -> Callable[[tuple[int, Tag]], Any] | None:
        """The key to sort by, None for the order of scores."""
        count = self.frequency.get
        orders: dict[str, Callable[[tuple[int, Tag]], Any]] = {
            "alphabet": lambda row: (self.keys[row[0]], row[1].text),
            "frequency": lambda row: -count(row[1].text, 0),
            "model": lambda row: row[0],
        }
        return orders.get(self.selection.sort)


def select(
    labels: Sequence[Label],
    values: Array | Sparse,
    selection: Selection,
    frequency: Mapping[str, int] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Selected:
    """The tags of one picture; for many of the same model a `Selector` is faster."""
    made = Selector(labels, selection, thresholds=thresholds, frequency=frequency)
    return made.select(values)


def text(selected: Selected, selection: Selection) -> str:
    """The caption: trigger, sentences, tags, with a comma and a space between them."""
    written = [_written(tag, selection) for tag in selected.tags]
    first = sum(tag.category == "trigger" for tag in selected.tags)
    return ", ".join((*written[:first], *selected.sentences, *written[first:]))


def resolved(selection: Selection, thresholds: Mapping[str, float]) -> Selection:
    """The selection with a model's own thresholds where it names none of its own."""
    own = {**thresholds, **_thresholds(selection)}
    return dataclasses.replace(
        selection, general=_least("general", own), character=_least("character", own)
    )


def _written(tag: Tag, selection: Selection) -> str:
    if tag.category in ("trigger", "additional"):
        return tag.text
    if not (selection.weighted or selection.escape):
        return tag.text
    escaped = _BRACKETS.sub(r"\\\1", tag.text)
    return f"({escaped}:{tag.score:.2f})" if selection.weighted else escaped


def _thresholds(selection: Selection) -> dict[str, float]:
    """The thresholds that the selection names, by category."""
    found = {}
    for each in selection.thresholds:
        kind, equals, number = each.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not equals or not kind.strip() or not 0 <= value <= 1:
            raise OptionProblem(
                f"thresholds: {each!r} is none; write a category and a number from 0 to 1, "
                "as artist=0.5."
            )
        found[kind.strip()] = value
    named = {"general": selection.general, "character": selection.character}
    return {**found, **{kind: value for kind, value in named.items() if value is not None}}


def _known(kind: str, own: Sequence[str]) -> str:
    """A category as models write it, in any case; `own` are those of this one."""
    found = kind.strip().lower()
    there = CATEGORIES.union(own)
    if found not in there:
        near = difflib.get_close_matches(found, there, 1)
        said = f"; is it {near[0]}?" if near else f"; there are {', '.join(sorted(there))}."
        raise OptionProblem(f"categories: {kind!r} is none{said}")
    return found


def _least(kind: str, own: Mapping[str, float]) -> float:
    """The threshold of a category; one that nobody names has that of general tags."""
    general = own.get("general", FALLBACK["general"])
    return own.get(kind, FALLBACK.get(kind, general))


def _pattern(entry: str, how: str) -> re.Pattern[str]:
    try:
        return re.compile(translate(entry.strip()) if how == "glob" else entry, re.IGNORECASE)
    except re.error as error:
        raise OptionProblem(f"{entry!r} is no {how}: {error}.") from None


def _matcher(entries: Sequence[str], selection: Selection) -> Callable[[str], bool]:
    """Whether a label is on a list."""
    if selection.match == "literal":
        names = {fold(entry) for entry in entries}
        return lambda name: fold(name) in names
    patterns = [_pattern(entry, selection.match) for entry in entries]
    return lambda name: any(_fullmatch(pattern, name) for pattern in patterns)


def _fullmatch(pattern: re.Pattern[str], name: str) -> re.Match[str] | None:
    return pattern.fullmatch(name) or pattern.fullmatch(name.replace("_", " "))


def _texts(names: Sequence[str], selection: Selection) -> list[str]:
    """Each label as it is spelled; empty where it is replaced by nothing."""
    rules = [_replacement(entry) for entry in selection.replace]
    faces = set(selection.kaomoji)

    def spelled(name: str) -> str:
        return name.replace("_", " ") if selection.spaces and name not in faces else name

    if selection.match == "literal":
        table = {fold(old): new for old, new in reversed(rules)}
        return [table.get(fold(name), spelled(name)) for name in names]
    patterns = [(_pattern(old, selection.match), new) for old, new in rules]
    return [_replaced(name, patterns, selection.match, spelled(name)) for name in names]


def _replaced(
    name: str, patterns: Sequence[tuple[re.Pattern[str], str]], how: str, otherwise: str
) -> str:
    for pattern, new in patterns:
        if found := _fullmatch(pattern, name):
            if how == "glob":
                return new
            try:
                return found.expand(new)
            except (re.error, IndexError) as error:
                raise OptionProblem(f"replace: {new!r} cannot be filled in: {error}.") from None
    return otherwise


def _replacement(entry: str) -> tuple[str, str]:
    arrow = " -> " if " -> " in f"{entry} " else "->"
    old, found, new = f"{entry} ".partition(arrow)
    if not found or not old.strip():
        raise OptionProblem(f"replace: {entry!r} is none; write it as old -> new.")
    return old.strip(), new.strip()
