"""Whether a network is merged into a layer's weight or computed beside it: decided here alone.

A merged weight costs nothing in a forward pass and must be made anew whenever a share of it
changes. A side path costs thin products in every forward pass; a change of its multipliers is free.
Both give the same answer, so that this choice is about time alone, but for two things. A weight
stored in a few bits loses in rounding what is merged into it, and a side path does not. And samples
of one batch that have different networks share one weight, but not one multiplier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

# What it takes a layer, measured with this project's code on a CPU core: seconds beside the
# arithmetic, and operations a second of products as thin as a network's ranks. Fewer ranks than
# THIN take no less: then what is read and written counts. A GPU's rate is an estimate; there the
# seconds beside the arithmetic decide.
MERGE_SECONDS = 110e-6
SIDE_SECONDS = 20e-6
RATES = {"cpu": 9e10}
OTHER_RATE = 2e13
THIN = 32

_TOKENS = 77  # of a prompt, in the layers that read it
_BLOCK = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.")


@dataclass(frozen=True)
class Course:
    """How a network's weight on the UNet goes over a sampling.

    changes: steps before which it becomes another one, the first included.
    forwards: steps in which it is not 0.
    rows, area: samples in one forward pass, and latent pixels in one of them.
    """

    changes: int
    forwards: int
    rows: int = 2
    area: int = 64 * 64


@dataclass(frozen=True)
class Share:
    """One network's part in one layer, as far as the choice asks.

    rank: None where its kind has no low-rank form; 0 where it changes the bias alone.
    course: None where its weight stays.
    of_each: its weights differ between the pictures of the batch.
    """

    rank: int | None
    course: Course | None = None
    of_each: bool = False


@dataclass(frozen=True)
class Layer:
    """What the choice asks of a layer.

    able: a change of its weight can be computed beside it (`side_path.can_carry`).
    coarse: its weight is stored in few bits and nothing finer is at hand.
    positions: rows of its input in one forward pass, samples times tokens or pixels.
    """

    shape: tuple[int, ...]
    able: bool = True
    coarse: bool = False
    positions: int = 1
    device: str = "cpu"


def beside(layer: Layer, shares: Sequence[Share]) -> list[bool]:
    """For each share whether it goes beside the layer; the others are merged.

    - A kind without a low-rank form, and a layer that cannot carry a side path: merged.
    - A coarse weight: all low-rank shares beside it.
    - Weights that differ between pictures: beside it. Where a share of such a layer cannot be, the
      layer is computed by groups of pictures, and each group's weight may as well hold them all.
    - A weight that changes over the steps: where that takes less time over the sampling. If some
      other share has the weight merged anew anyway, a low-rank one joins in for little.
    - A weight that stays: merged.
    """
    carried = [layer.able and share.rank is not None for share in shares]
    grouped = any(s.of_each and not can for s, can in zip(shares, carried, strict=True))
    if layer.coarse:
        return [can and not (grouped and s.of_each) for s, can in zip(shares, carried, strict=True)]
    if grouped:
        return [False] * len(shares)
    changing = [
        share
        for share, can in zip(shares, carried, strict=True)
        if can and share.course is not None and not share.of_each
    ]
    anyway = any(s.course and not can for s, can in zip(shares, carried, strict=True))
    cheaper = bool(changing) and side_seconds(layer, changing) < merge_seconds(
        layer, shares, changing, anyway=anyway
    )
    return [
        can and (share.of_each or (cheaper and share.course is not None))
        for share, can in zip(shares, carried, strict=True)
    ]


def side_seconds(layer: Layer, changing: Sequence[Share]) -> float:
    """Seconds that these take beside the layer over a sampling: 2 r (in + out) operations a row."""
    out, inputs = layer.shape[0], math.prod(layer.shape[1:])
    rank = max(THIN, sum(share.rank or 0 for share in changing))
    forwards = max(share.course.forwards for share in changing if share.course)
    operations = 2 * rank * (inputs + out) * layer.positions
    return forwards * (SIDE_SECONDS + operations / RATES.get(layer.device, OTHER_RATE))


def merge_seconds(
    layer: Layer, shares: Sequence[Share], changing: Sequence[Share], *, anyway: bool = False
) -> float:
    """Seconds that they take merged: 2 r in out operations at each change, with all other ranks.

    `anyway`: the weight is merged at each change for another one's sake.
    """
    out, inputs = layer.shape[0], math.prod(layer.shape[1:])
    rank = sum(share.rank or 0 for share in (changing if anyway else shares))
    changes = max(share.course.changes for share in changing if share.course)
    operations = 2 * (rank if anyway else max(THIN, rank)) * out * inputs
    seconds = operations / RATES.get(layer.device, OTHER_RATE)
    return changes * (seconds + (0 if anyway else MERGE_SECONDS))


def positions(canonical: str, levels: int, course: Course) -> int:
    """Rows of a UNet layer's input in one forward pass, by its canonical name.

    `levels`: resolutions of the UNet; each halves the sides of the one before.
    """
    if canonical.endswith(("attn2.to_k", "attn2.to_v")):
        return course.rows * _TOKENS
    if "time_emb" in canonical or ".add_embedding" in canonical:
        return course.rows
    level = 0
    if found := _BLOCK.match(canonical):
        level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
    elif ".mid_block" in canonical:
        level = levels - 1
    return max(1, course.rows * course.area // 4**level)
