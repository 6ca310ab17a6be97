"""Pictures that look alike, found by a perceptual hash.

The hash is a difference hash: the picture in grey at 17 × 16, one bit for each pixel that is
brighter than its right neighbour (N. Krawetz, "Kind of Like That", 2013; there with 8 × 8 bits). It
does not see colour and says little about even areas, so pictures whose hashes agree are also
compared as 8 × 8 pixels of colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

BITS = 256
NEAR = 10  # bits of 256 that may differ in pictures that are one
_COLOUR = 12.0  # of 255; mean difference of the 8 × 8 pixels
_ROWS = 1024  # compared at a time: 1024 × 5000 distances take 20 MB


@dataclass(frozen=True)
class Fingerprint:
    """How a picture looks: `bits` [256] of -1 and 1, `colours` [192] in 0..255, both float32."""

    bits: Any
    colours: Any


def fingerprint(picture: Image) -> Fingerprint:
    """The fingerprint of a picture in RGB."""
    import numpy as np
    from PIL import Image

    grey = picture.convert("L").resize((17, 16), Image.Resampling.LANCZOS)
    levels = np.asarray(grey, np.int16)
    brighter = levels[:, :-1] > levels[:, 1:]
    small = picture.resize((8, 8), Image.Resampling.BOX)
    return Fingerprint(
        np.where(brighter, 1, -1).astype(np.float32).reshape(-1),
        np.asarray(small, np.float32).reshape(-1),
    )


def alike(prints: Sequence[Fingerprint], most: int = NEAR) -> list[list[int]]:
    """Groups of at least two that look alike, by index; `most` bits of 256 may differ.

    Who looks like one of a group belongs to it.
    """
    import numpy as np

    if len(prints) < 2:
        return []
    bits = np.stack([each.bits for each in prints])
    colours = np.stack([each.colours for each in prints])
    leader = list(range(len(prints)))

    def first(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for start in range(0, len(prints), _ROWS):
        # of ±1, the dot product is 256 less twice the bits that differ
        near = bits[start : start + _ROWS] @ bits.T >= BITS - 2 * most
        for row, column in np.argwhere(np.triu(near, start + 1)):
            one, other = int(row) + start, int(column)
            if np.abs(colours[one] - colours[other]).mean() <= _COLOUR:
                a, b = sorted((first(one), first(other)))
                leader[b] = a
    groups: dict[int, list[int]] = {}
    for index in range(len(prints)):
        groups.setdefault(first(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]
