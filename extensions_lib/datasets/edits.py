"""Changes of captions as values: what the editor's buttons do, before it is done.

An `Edit` makes a caption's new text from its old one and touches nothing; `TagSet.preview` shows
what it would change, `TagSet.apply` does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from extensions_lib.datasets.captions import fold, join, retag, split, unique
from extensions_lib.errors import CrucibleError

SEARCHES = ("literal", "glob", "regex")
PLACES = ("end", "start")
ORDERS = ("alphabet", "frequency", "length")
_NUMBERED = re.compile(r"^(?:\d+(?=[-\s]|$)|[-\s])+")  # 00012-3- in front of a name, not 1 of 1girl
_PATIENCE = 1.0  # seconds that a regular expression may take over one caption


class EditProblem(CrucibleError):
    """A change that cannot be made as it was asked for."""


@dataclass(frozen=True)
class Edit:
    """A change of captions. `change(text, name)` gives the new text of the picture `name`."""

    title: str  # as the history shows it
    change: Callable[[str, str], str]


def add(tags: str, place: str = "end", after: int = 0) -> Edit:
    """Tags, parted by commas, that a caption does not have yet; `after` the first so many tags.

    `place` "start" puts them in front, and behind `after` tags that stay first (a trigger word);
    "end" behind all. Raises EditProblem for no tag.
    """
    new = _some(tags)
    if place not in PLACES:
        raise EditProblem(f"place: {place!r} is none of {', '.join(PLACES)}.")

    def change(old: list[str]) -> list[str]:
        missing = unique(new, also=old)
        at = len(old) if place == "end" else min(after, len(old))
        return old[:at] + missing + old[at:]

    return _tag_edit(f"Add {_said(new)}", change)


def remove(tags: str | Sequence[str]) -> Edit:
    """Takes tags out, spelled just so. Raises EditProblem for no tag."""
    gone = _some(tags)
    found = frozenset(gone)
    return _tag_edit(f"Remove {_said(gone)}", lambda old: [tag for tag in old if tag not in found])


def rename(tag: str, to: str) -> Edit:
    """One tag, spelled just so, by one or more others in its place; none is then there twice."""
    [old_tag], new = _some([tag]), _some(to)

    def change(old: list[str]) -> list[str]:
        if old_tag not in old:
            return old
        return unique(part for each in old for part in (new if each == old_tag else [each]))

    return _tag_edit(f"Rename {old_tag} to {_said(new)}", change)


def replace(
    search: str,
    by: str,
    how: str = "literal",
    *,
    whole_tags: bool = True,
    ignore_case: bool = False,
) -> Edit:
    """Search and replace: in whole tags, or anywhere in the text.

    `how` is "literal", "glob" (`*`, `?`, `[…]`, which do not reach over a comma) or "regex", whose
    replacement may hold groups as `\\1`. A whole tag replaced by nothing is dropped, by a text with
    commas becomes several; anywhere in the text, tags that are left empty are dropped. Raises
    EditProblem for an empty search or a wrong regular expression, and, when it is used, for one
    that takes too long.
    """
    if not search:
        raise EditProblem("Search for something: the search field is empty.")
    substitute = _substitution(search, by, how, whole_tags, ignore_case)
    title = f"Replace {search} by {by}" if by else f"Remove {search}"
    if not whole_tags:
        return Edit(title, lambda text, name: _without_gaps(substitute(text), text))

    def change(old: list[str]) -> list[str]:
        replaced = [(tag, substitute(tag)) for tag in old]
        if all(tag == new for tag, new in replaced):
            return old
        return unique(part for _, new in replaced for part in split(new))

    return _tag_edit(title, change)


def dedupe() -> Edit:
    """Takes out tags that come again, whatever their spelling; the first one stays."""
    return _tag_edit("Remove tags that come twice", unique)


def sort(
    by: str = "alphabet",
    *,
    frequency: Mapping[str, int] | None = None,
    keep_first: int = 0,
    backwards: bool = False,
) -> Edit:
    """By alphabet, by frequency (the most frequent first) or by length (the shortest first).

    The first `keep_first` tags stay where they are; `backwards` turns the others' order round.
    Raises EditProblem for another order.
    """
    if by not in ORDERS:
        raise EditProblem(f"sort: {by!r} is none of {', '.join(ORDERS)}.")
    counts = frequency or {}
    keys: dict[str, Callable[[str], tuple[int, str]]] = {
        "alphabet": lambda tag: (0, fold(tag)),
        "frequency": lambda tag: (-counts.get(tag, 0), fold(tag)),
        "length": lambda tag: (len(tag), fold(tag)),
    }

    def change(old: list[str]) -> list[str]:
        return old[:keep_first] + sorted(old[keep_first:], key=keys[by], reverse=backwards)

    return _tag_edit(f"Sort by {by}", change)


def shorten(most: int, tokens: Callable[[str], int]) -> Edit:
    """Takes tags off the end of a caption until it has at most `most` tokens.

    `tokens` counts those of a text. A caption of one tag, such as a sentence, stays whole. Raises
    EditProblem for fewer than one token.
    """
    if most < 1:
        raise EditProblem(f"{most}: is no length of a caption; at least 1 token must stay.")

    def change(old: list[str]) -> list[str]:
        fits, too_many = 1, len(old) + 1  # so many tags
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if tokens(join(old[:middle])) <= most:
                fits = middle
            else:
                too_many = middle
        return old[:fits]

    return _tag_edit(f"Shorten to {most} tokens", change)


def from_names() -> Edit:
    """The picture's name as the caption of those that have no tag.

    What numbers it in front is left out, `_` is a space: `00012-3-red_hat, smile.png` gives
    `red hat, smile`. A name of numbers alone gives nothing.
    """

    def change(text: str, name: str) -> str:
        if split(text):
            return text
        stem = PurePosixPath(name).stem.replace("_", " ")
        return join(split(_NUMBERED.sub("", stem))) or text

    return Edit("Captions from names", change)


def write(texts: Mapping[str, str]) -> Edit:
    """New captions as they stand, by picture: what was typed over one, or pasted over many."""
    title = f"Edit {next(iter(texts))}" if len(texts) == 1 else f"Write {len(texts)} captions"
    return Edit(title, lambda text, name: texts.get(name, text))


# --- parts ------------------------------------------------------------------------------------


def _tag_edit(title: str, change: Callable[[list[str]], Sequence[str]]) -> Edit:
    return Edit(title, lambda text, name: retag(text, change))


def _without_gaps(text: str, before: str) -> str:
    """Without the empty tags that a replacement has left: `a, , b` becomes `a, b`."""
    if _gaps(text) <= _gaps(before):
        return text
    lines = re.split("([\r\n]+)", text)
    return "".join(_closed(line) if "," in line else line for line in lines)


def _gaps(text: str) -> int:
    """How many empty tags there are between, before and after commas."""
    parts = (line.split(",") for line in re.split("[\r\n]+", text) if "," in line)
    return sum(not part.strip() for line in parts for part in line)


def _closed(line: str) -> str:
    parts = [part for part in line.split(",") if part.strip()]
    return ",".join([parts[0].lstrip(), *parts[1:]]) if parts else ""


def _some(tags: str | Iterable[str]) -> list[str]:
    found = split(tags) if isinstance(tags, str) else [tag.strip() for tag in tags if tag.strip()]
    if not found:
        raise EditProblem("Name at least one tag.")
    return unique(found) if isinstance(tags, str) else found


def _said(tags: Sequence[str]) -> str:
    shown = ", ".join(tags[:3])
    return shown if len(tags) <= 3 else f"{shown} and {len(tags) - 3} more"


def _substitution(
    search: str, by: str, how: str, whole: bool, ignore_case: bool
) -> Callable[[str], str]:
    """A function that replaces in a tag (all of it must match) or in a text (anywhere)."""
    import regex  # unlike re, it can give up

    if how not in SEARCHES:
        raise EditProblem(f"search: {how!r} is none of {', '.join(SEARCHES)}.")
    pattern = {"literal": re.escape(search), "glob": glob_pattern(search), "regex": search}[how]
    flags = regex.IGNORECASE if ignore_case else 0
    try:
        compiled = regex.compile(pattern, flags)
    except regex.error as error:
        raise EditProblem(f"{search}: is no regular expression ({error}).") from None

    def replacement(match: regex.Match[str]) -> str:
        return str(match.expand(by)) if how == "regex" else by

    def substitute(text: str) -> str:
        try:
            if not whole:
                return str(compiled.sub(replacement, text, timeout=_PATIENCE))
            match = compiled.fullmatch(text, timeout=_PATIENCE)
            return text if match is None else replacement(match)
        except TimeoutError:
            raise EditProblem(
                f"{search}: takes too long on “{text[:60]}”; write it more simply."
            ) from None
        except (regex.error, IndexError) as error:
            raise EditProblem(f"{by}: cannot be put in place of {search} ({error}).") from None

    return substitute


def glob_pattern(glob: str) -> str:
    """A glob as a regular expression that stays within one tag."""
    parts = re.findall(r"\*|\?|\[!?\]?[^\]]*\]|.", glob, re.DOTALL)
    signs = {"*": r"[^,\r\n]*", "?": r"[^,\r\n]"}
    return "".join(
        signs.get(part) or (_class(part) if len(part) > 1 else re.escape(part)) for part in parts
    )


def _class(glob: str) -> str:
    inside = glob[1:-1].replace("\\", "\\\\").replace("[", r"\[")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
