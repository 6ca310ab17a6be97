"""Filters over captions: `1girl AND NOT hat OR (smile, blue hair)`.

    filter  = all { "OR" all }
    all     = one { ( "AND" | "," ) one }
    one     = "NOT" one | "(" filter ")" | test
    test    = tag | "count" ( ">" ">=" "<" "<=" "=" "!=" ) number | "untagged" | "name:" glob

Words side by side are one tag (`blue hair`). A tag with a comma or a keyword in it, or a bracket
after a space, stands in quotes (`"saber (fate)"`); a bracket right after a word belongs to it
(`saber_(fate)`). Tags match whole, as `captions.fold` has them, with `*`, `?` and `[…]` as globs,
in quotes too; a backslash takes a sign as it is. `name:` looks at the picture's path in the set.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from extensions_lib.datasets.captions import fold
from extensions_lib.errors import CrucibleError

Test = Callable[[Collection[str], str], bool]  # folded tags, the picture's name

_COUNT = re.compile(r"count\s*(>=|<=|!=|=|>|<)\s*(\d{1,9})(?![\w])")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt,
    "<=": operator.le, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_KEYWORDS = ("AND", "OR", "NOT")
_DEEPEST = 100  # brackets in one another


class FilterProblem(CrucibleError):
    """A filter that cannot be understood; `place` is where, counted from 0."""

    def __init__(self, text: str, place: int, what: str) -> None:
        self.place = place
        near = f"{text[max(0, place - 30) : place]}▸{text[place : place + 30]}"
        super().__init__(f"Filter: {what} (sign {place + 1}: {near}).")


@dataclass(frozen=True)
class Filter:
    """A filter that was understood; `tags` are those it names, as written, globs left out."""

    text: str
    tags: tuple[str, ...]
    _test: Test = field(repr=False)

    def matches(self, folded: Collection[str], name: str = "") -> bool:
        """Whether a picture with these tags (`captions.fold`ed) and this name passes."""
        return self._test(folded, name)


def parse(text: str) -> Filter:
    """The filter that a text means; an empty one lets everything pass. Raises FilterProblem."""
    return _Parser(text).parsed()


def tag_test(tag: str) -> Callable[[Collection[str]], tuple[str, ...] | list[str]]:
    """A function that gives those of some folded tags that `tag`, maybe a glob, means."""
    wanted, is_glob = _pattern(tag)
    if not is_glob:
        return lambda folded: (wanted,) if wanted in folded else ()
    matches = _Matches(wanted)
    return lambda folded: [each for each in folded if matches[each]]


def quoted(tag: str) -> str:
    """The tag as a filter that means just it."""
    escaped = re.sub(r'([\\*?\["])', r"\\\1", fold(tag))
    return f'"{escaped}"'


# --- tests ------------------------------------------------------------------------------------


def _pattern(tag: str) -> tuple[str, bool]:
    """The folded tag, or its glob as a regular expression; escapes are taken out."""
    if not re.search(r"[*?\[\\]", tag):
        return fold(tag), False
    # Signs after a backslash, and brackets that close nowhere, mean themselves.
    parts, plain, is_glob = [], [], False
    for match in re.finditer(r"\\(.)|([*?]|\[!?\]?[^\]]*\])|(.)", tag, re.DOTALL):
        escaped, glob, other = match.groups()
        if glob:
            is_glob = True
            parts.append(_glob_regex(glob))
        else:
            parts.append(re.escape(_folded_sign(escaped or other)))
            plain.append(escaped or other)
    if is_glob:
        return "".join(parts), True
    return fold("".join(plain)), False


def _folded_sign(sign: str) -> str:
    return " " if sign in "_ \t" else sign.casefold()


def _glob_regex(glob: str) -> str:
    translated = fnmatch.translate(glob.casefold().replace("_", " "))
    # (?s:…)\Z is what fnmatch puts around it
    return re.sub(r"^\(\?s:(.*)\)\\[Zz]$", r"(?s:\1)", translated, flags=re.DOTALL)


class _Matches(dict[str, bool]):
    """Whether a tag matches a pattern; each tag of a set is looked at once."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = re.compile(pattern)

    def __missing__(self, tag: str) -> bool:
        found = self[tag] = self._pattern.fullmatch(tag) is not None
        return found


def _tag(tag: str) -> Test:
    wanted, is_glob = _pattern(tag)
    if not is_glob:
        return lambda folded, name: wanted in folded
    matches = _Matches(wanted).__getitem__
    return lambda folded, name: any(map(matches, folded))


def _name(glob: str) -> Test:
    pattern = re.compile(fnmatch.translate(glob.casefold()))
    return lambda folded, name: pattern.match(name.casefold()) is not None


def _count(sign: str, number: int) -> Test:
    compare = _COMPARE[sign]
    return lambda folded, name: compare(len(folded), number)


def _not(one: Test) -> Test:
    return lambda folded, name: not one(folded, name)


def _all(parts: list[Test]) -> Test:
    if len(parts) == 1:
        return parts[0]
    return lambda folded, name: all(part(folded, name) for part in parts)


def _any(parts: list[Test]) -> Test:
    if len(parts) == 1:
        return parts[0]
    return lambda folded, name: any(part(folded, name) for part in parts)


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Token:
    kind: str  # "word", "quoted", "(", ")", ",", "count", "AND", "OR", "NOT", "end"
    text: str
    place: int


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        sign = text[at]
        if sign.isspace():
            at += 1
        elif sign in "(),":
            yield _Token(sign, sign, at)
            at += 1
        elif sign == '"':
            end = _closing_quote(text, at)
            yield _Token("quoted", text[at + 1 : end], at)
            at = end + 1
        elif count := _COUNT.match(text, at):
            yield _Token("count", count[0], at)
            at = count.end()
        else:
            end = _word_end(text, at)
            word = text[at:end]
            yield _Token(word if word in _KEYWORDS else "word", word, at)
            at = end
    yield _Token("end", "", len(text))


def _closing_quote(text: str, start: int) -> int:
    match = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL).match(text, start)
    if match is None:
        raise FilterProblem(text, start, 'this " is not closed; add another')
    return match.end() - 1


def _word_end(text: str, start: int) -> int:
    """Where a word ends; brackets opened within it belong to it: `saber_(fate)`."""
    depth, at = 0, start
    while at < len(text):
        sign = text[at]
        if sign == "\\" and at + 1 < len(text):
            at += 2
            continue
        if sign.isspace() or sign in ',"' or (sign == ")" and not depth):
            break
        if sign == "(" and text[start:at] in _KEYWORDS:
            break
        depth += (sign == "(") - (sign == ")")
        at += 1
    return at


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.at = 0
        self.depth = 0
        self.tags: list[str] = []

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def problem(self, what: str) -> FilterProblem:
        return FilterProblem(self.text, self.next.place, what)

    def parsed(self) -> Filter:
        if self.next.kind == "end":
            return Filter(self.text, (), lambda folded, name: True)
        test = self.any()
        if self.next.kind == ")":
            raise self.problem("this bracket was not opened")
        if self.next.kind != "end":
            raise self.problem(f"AND, OR or a comma is missing before {self.next.text}")
        return Filter(self.text, tuple(self.tags), test)

    def any(self) -> Test:
        parts = [self.all()]
        while self.next.kind == "OR":
            self.take()
            parts.append(self.all())
        return _any(parts)

    def all(self) -> Test:
        parts = [self.one()]
        while self.next.kind in ("AND", ","):
            comma = self.take().kind == ","
            if comma and self.next.kind in ("end", ")"):  # a list that ends in a comma
                break
            parts.append(self.one())
        return _all(parts)

    def one(self) -> Test:
        negated = False
        while self.next.kind == "NOT":
            self.take()
            negated = not negated
        test = self.bracket() if self.next.kind == "(" else self.test()
        return _not(test) if negated else test

    def bracket(self) -> Test:
        opening = self.take()
        self.depth += 1
        if self.depth > _DEEPEST:
            raise FilterProblem(self.text, opening.place, "too many brackets in one another")
        test = self.any()
        if self.next.kind == "end":
            raise FilterProblem(self.text, opening.place, "this bracket is not closed; add )")
        if self.next.kind != ")":
            raise self.problem(f"AND, OR or a comma is missing before {self.next.text}")
        self.take()
        self.depth -= 1
        return test

    def test(self) -> Test:
        token = self.next
        if token.kind == "count":
            self.take()
            sign, number = _COUNT.fullmatch(token.text).groups()  # type: ignore[union-attr]
            return _count(sign, int(number))
        if token.kind == "quoted":
            if not token.text.strip():
                raise self.problem("there is no tag between these quotes")
            self.take()
            return self.tag(token.text)
        if token.kind == "word":
            return self.words()
        if token.kind == "end":
            raise self.problem("a tag is missing at the end")
        raise self.problem(f"a tag is missing before {token.text}")

    def words(self) -> Test:
        words = [self.take().text]
        while self.next.kind == "word":
            words.append(self.take().text)
        said = " ".join(words)
        if said == "untagged":
            return lambda folded, name: not folded
        if said.startswith("name:"):
            return _name(said.removeprefix("name:").strip())
        return self.tag(said)

    def tag(self, tag: str) -> Test:
        plain, is_glob = _pattern(tag)
        if not is_glob:
            self.tags.append(plain)
        return _tag(tag)
