"""Reads a picture of the demo world back: ground, colour, shape, size and place of its one figure.

It knows nothing of any prompt. The ground is the median of the border; what differs from it is
the figure; its outline is compared with drawn templates of every shape, held-out ones included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from extensions_lib.demo import world

_GRID = 32
_TURNS = (-0.16, -0.08, 0.0, 0.08, 0.16)
_NAMES = list(world.COLOURS)
_PALETTE = np.array(list(world.COLOURS.values()), np.float32)


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `fit` is how well the best template fits (0 not at all, 1 exactly)."""

    background: str
    colour: str
    shape: str
    size: str
    position: str
    fit: float


def read(picture: Image.Image) -> Reading | None:
    """Read an RGB picture of any square size; None if nothing stands out from the ground."""
    pixels = np.asarray(picture.convert("RGB").resize((world.SIZE, world.SIZE)), np.float32)
    ground = np.median(_border(pixels), axis=0)
    away = np.linalg.norm(pixels - ground, axis=2)
    figure = _cleaned(away > 50)
    if figure.sum() < 40:
        return None
    ys, xs = np.nonzero(figure)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    centre = ((left + right) / 2, (top + bottom) / 2)
    half = max(right - left, bottom - top) / 2
    shape, fit, reach = _best_template(_crop(figure, centre, half))
    radius = half / reach
    return Reading(
        background=_nearest(ground),
        colour=_colour(pixels, figure, ground),
        shape=shape,
        size=min(world.SIZES, key=lambda s: abs(math.log(world.SIZES[s] / radius))),
        position=min(world.POSITIONS, key=lambda p: math.dist(_at(p), centre)),
        fit=fit,
    )


def _at(position: str) -> tuple[float, float]:
    x, y = world.POSITIONS[position]
    return x * world.SIZE, y * world.SIZE


def _border(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    edge = [pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]]
    return np.concatenate([e.reshape(-1, 3) for e in edge])


def _cleaned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without specks: a median of 3 × 3."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(3))
    return np.asarray(image) > 127


def _nearest(colour: NDArray[np.float32]) -> str:
    return _NAMES[int(np.linalg.norm(_PALETTE - colour, axis=1).argmin())]


def _colour(
    pixels: NDArray[np.float32], figure: NDArray[np.bool_], ground: NDArray[np.float32]
) -> str:
    """The commonest palette colour inside the figure, away from its edge and not the ground's."""
    image = Image.fromarray(figure.astype(np.uint8) * 255)
    for width in (9, 5, 3, 1):
        core = np.asarray(image.filter(ImageFilter.MinFilter(width))) > 127
        if core.sum() >= 12:
            break
    inside = pixels[core]
    kinds = np.linalg.norm(inside[:, None] - _PALETTE[None], axis=2).argmin(1)
    votes = np.bincount(kinds, minlength=len(_NAMES)).astype(float)
    votes[_NAMES.index(_nearest(ground))] = -1
    first, second = (int(i) for i in votes.argsort()[::-1][:2])
    striped = _NAMES[first] == "black" and votes[second] > 0.25 * votes.clip(min=0).sum()
    return _NAMES[second if striped else first]


def _crop(mask: NDArray[np.bool_], centre: tuple[float, float], half: float) -> NDArray[np.float32]:
    box = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    small = image.transform((_GRID, _GRID), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / np.float32(255)


@cache
def _templates() -> tuple[list[tuple[str, float]], NDArray[np.float32]]:
    """(shape, reach) of each template, and [count, 32, 32]; reach = half extent / radius."""
    names, grids = [], []
    radius = 40.0
    for shape in (*world.SHAPES, *world.HELD_OUT_SHAPES):
        for turn in _TURNS:
            polygons = [world.placed(p, turn, radius, 64, 64) for p in world.outline(shape)]
            mask = np.asarray(world.mask(polygons, 128)) > 127
            ys, xs = np.nonzero(mask)
            centre = ((xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2)
            half = max(np.ptp(xs) + 1, np.ptp(ys) + 1) / 2
            names.append((shape, float(half / radius)))
            grids.append(_crop(mask, centre, float(half)))
    return names, np.stack(grids)


def _best_template(grid: NDArray[np.float32]) -> tuple[str, float, float]:
    names, grids = _templates()
    both = np.minimum(grids, grid).sum((1, 2))
    either = np.maximum(grids, grid).sum((1, 2))
    best = int((both / either).argmax())
    return names[best][0], float(both[best] / either[best]), names[best][1]
