"""Weights that change while a picture is sampled: `0@0,1@0.5`, and `start`, `stop`, `step`.

A curve is a list of values at positions, as the extension sd-webui-loractl writes it: parts are
separated by `,` or `;`, a value and its position by `@` or `~`. Where the last position is at most
1 all are shares of the steps, else numbers of steps. Between two positions the weight goes in a
straight line; before the first and after the last it stays.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

_PART = re.compile(r"[,;]")
_AT = re.compile(r"[@~]")


class CurveMistake(ValueError):
    """A curve that cannot be read; the text says why."""


@dataclass(frozen=True)
class Curve:
    """A weight over the steps of sampling.

    `points` are (position, value) with rising positions; `shares` tells whether positions are
    shares of all steps or numbers of steps. From `start` on and before `stop` (in the same unit as
    they were written: above 1 steps, else shares) the curve holds, elsewhere the weight is 0.
    """

    points: tuple[tuple[float, float], ...]
    shares: bool = True
    start: float | None = None
    stop: float | None = None

    @property
    def constant(self) -> bool:
        """Whether it is one weight for all steps."""
        one = len({value for _, value in self.points}) == 1
        return one and self.start is None and self.stop is None

    def at(self, step: int, steps: int) -> float:
        """The weight in step `step` (from 0) of `steps`."""
        if self.start is not None and step < _in_steps(self.start, steps):
            return 0.0
        if self.stop is not None and step >= _in_steps(self.stop, steps):
            return 0.0
        # The last step is the whole: a curve that ends at 1 reaches its last value.
        here = step / max(1, steps - 1) if self.shares else float(step)
        before = self.points[0]
        for point in self.points:
            if here < point[0]:
                if point is self.points[0]:
                    return point[1]
                way = (here - before[0]) / (point[0] - before[0])
                return before[1] + way * (point[1] - before[1])
            before = point
        return before[1]

    def scaled(self, factor: float) -> Curve:
        """The same curve, its values times `factor`."""
        points = tuple((place, value * factor) for place, value in self.points)
        return Curve(points, self.shares, self.start, self.stop)

    def within(self, start: float | None, stop: float | None) -> Curve:
        """The same curve, 0 outside of these positions."""
        return Curve(self.points, self.shares, start, stop)


def constant(value: float) -> Curve:
    """One weight for all steps."""
    return Curve(((0.0, value),))


def read_curve(text: str) -> Curve:
    """A number, or `value@position,…`. Raises CurveMistake."""
    points: list[tuple[float, float]] = []
    parts = [part.strip() for part in _PART.split(text)]
    for number, part in enumerate(parts):
        value, *place = _AT.split(part)
        if len(place) > 1:
            raise CurveMistake(f"{part!r} has more than one position")
        if not place and len(parts) > 1:
            # Without a position the values are spread evenly, as loractl does.
            place = [str(number / (len(parts) - 1))]
        points.append((_number(place[0]) if place else 0.0, _number(value)))
    places = [place for place, _ in points]
    if any(later <= sooner for sooner, later in pairwise(places)):
        raise CurveMistake(f"the positions of {text!r} do not rise")
    if places[0] < 0:
        raise CurveMistake(f"{text!r} has a position below 0")
    return Curve(tuple(points), shares=places[-1] <= 1)


def read_place(text: str) -> float:
    """A step, or a share of the steps. Raises CurveMistake."""
    place = _number(text)
    if place < 0:
        raise CurveMistake(f"{text!r} is below 0")
    return place


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise CurveMistake(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise CurveMistake(f"{text!r} is not a finite number")
    return value


def _in_steps(place: float, steps: int) -> float:
    return place * steps if 0 < place < 1 else place
