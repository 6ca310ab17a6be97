"""Buckets: the sizes at which pictures of many shapes are trained, all of about one area."""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]  # width, height in pixels


def sizes(area: int, step: int = 64, least: int = 256, most: int = 2048) -> list[Size]:
    """The buckets of at most `area` pixels with sides that `step` divides, narrow ones first.

    For each width from `least` to `most` the largest height that fits, both ways round, and the
    square: the list of kohya's trainer.
    """
    found = {(side, side) for side in [int(math.sqrt(area)) // step * step] if side}
    for width in range(least, most + 1, step):
        height = min(most, area // width // step * step)
        if height >= least:
            found |= {(width, height), (height, width)}
    return sorted(found, key=lambda size: (size[0] / size[1], size[0]))


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket for a picture: its own size, else the nearest shape, and of those the largest.

    Shapes are compared by the logarithm of width to height, so that both ways round are alike.
    """
    if size in buckets:
        return size
    shape = math.log(size[0] / size[1])
    return min(buckets, key=lambda b: (abs(math.log(b[0] / b[1]) - shape), -b[0] * b[1]))
