"""Prompt editing: which text holds at which sampling step.

Written forms, nested to any depth and free inside attention brackets::

    [from:to:when]   `from` up to step `when`, then `to`
    [to:when]        nothing, then `to`
    [from::when]     `from`, then nothing
    [a|b|c]          one option a step, in turn; an option may be empty

`when` with a decimal point is a share of the steps, without one a step number.

The rules are those of AUTOMATIC1111 WebUI 1.10.1: a bracket that belongs to no complete form is
plain text; a `|` outside a square bracket, or a backslash with nothing after it on its line, makes
the whole prompt plain text. Where stray brackets stand beside a complete form, the WebUI's answer
depends on Python's hash seed; here the complete form always counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[\[\]():|]|(?:[^\\\[\]():|]|\\.)+")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_CLOSES = {")": "(", "]": "["}
_LAST = 10**9  # later than any step, for a number too large to be one


@dataclass(frozen=True)
class Span:
    """`text` holds for every step after the span before it, up to and with step `until`."""

    until: int
    text: str


@dataclass
class _Edit:
    """`[before:after:when]`."""

    before: list[_Item]
    after: list[_Item]
    when: int

    def at(self, step: int) -> list[_Item]:
        return self.before if step <= self.when else self.after


@dataclass
class _Turns:
    """`[a|b|…]`."""

    options: list[list[_Item]]

    def at(self, step: int) -> list[_Item]:
        return self.options[(step - 1) % len(self.options)]


_Item = str | list | _Edit | _Turns  # a list is a group of items, to be read in order


@dataclass
class _Open:
    """A bracket not closed yet: its parts, and the separators between them."""

    bracket: str
    parts: list[list[_Item]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def as_text(self) -> Iterator[_Item]:
        """The items when the bracket turns out to be plain text."""
        yield self.bracket
        for part, separator in zip(self.parts, [*self.separators, ""], strict=True):
            yield from part
            yield separator


class _PlainText(Exception):
    """The prompt as a whole has no editing in it."""


class _Reader:
    """One pass over the prompt; no recursion, so nesting has no limit."""

    def __init__(self, prompt: str, steps: int) -> None:
        self.steps = steps
        self.items: list[_Item] = []
        self.open: list[_Open] = []
        self.changes: set[int] = {steps}
        position = 0
        while position < len(prompt):
            match = _TOKEN.match(prompt, position)
            if match is None:
                raise _PlainText
            self._take(match.group())
            position = match.end()
        self._give_up()

    def _take(self, token: str) -> None:
        if token in ("(", "["):
            self.open.append(_Open(token))
        elif token in (")", "]"):
            self._close(token)
        elif token in (":", "|") and self.open:
            self.open[-1].separators.append(token)
            self.open[-1].parts.append([])
        elif token == "|":
            raise _PlainText
        else:
            self._add(token)

    def _add(self, item: _Item) -> None:
        (self.open[-1].parts[-1] if self.open else self.items).append(item)

    def _close(self, token: str) -> None:
        node = None
        if self.open and self.open[-1].bracket == _CLOSES[token]:
            node = self._node(self.open[-1], token)
        if node is None:
            self._give_up()
            self._add(token)
        else:
            self.open.pop()
            self._add(node)

    def _node(self, opened: _Open, close: str) -> _Item | None:
        """The complete form that ends here, or None when the bracket is plain text."""
        marks = opened.separators
        colons = marks.count(":")
        if not marks or (opened.bracket == "(" and len(marks) == colons == 1):
            return [*opened.as_text(), close]
        if opened.bracket == "(":
            return None
        if not colons:
            self.changes.update(range(1, self.steps + 1))
            return _Turns(opened.parts)
        when = self._when(opened.parts[-1])
        if colons != len(marks) or colons > 2 or when is None:
            return None
        if when >= 1:
            self.changes.add(when)
        return _Edit(opened.parts[0] if colons == 2 else [], opened.parts[-2], when)

    def _when(self, part: list[_Item]) -> int | None:
        """The step that a part such as ` 0.5 ` names; None when it is not a number."""
        if len(part) != 1 or not isinstance(part[0], str):
            return None
        match = _WHEN.fullmatch(part[0])
        if match is None:
            return None
        value = float(match.group(1)) * (self.steps if "." in match.group(1) else 1)
        return min(self.steps, int(max(-_LAST, min(_LAST, value))))

    def _give_up(self) -> None:
        """A bracket left over is text, and then so is every bracket still open around it."""
        for opened in self.open:
            if "|" in opened.separators:
                raise _PlainText
            self.items.extend(opened.as_text())
        self.open.clear()


def _text_at(items: list[_Item], step: int) -> str:
    pieces: list[str] = []
    waiting: list[_Item] = [items]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            pieces.append(item)
        else:
            waiting.extend(reversed(item if isinstance(item, list) else item.at(step)))
    return "".join(pieces)


def schedule(prompt: str, steps: int) -> list[Span]:
    """The texts of a prompt over `steps` sampling steps, in order; the last span ends at `steps`.

    Neighbouring spans may hold the same text, as they do in the WebUI. Fewer than one step gives
    one span.
    """
    try:
        reader = _Reader(prompt, steps)
    except _PlainText:
        return [Span(steps, prompt)]
    ends = sorted(reader.changes)
    return [Span(end, _text_at(reader.items, end)) for end in ends]


def text_at(spans: list[Span], step: int) -> str:
    """The text for a 1-based step (the first span whose `until` is not before it)."""
    return next((span.text for span in spans if step <= span.until), spans[-1].text)
