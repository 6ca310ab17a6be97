"""The picture world of the demo checkpoint: coloured shapes on coloured grounds, with tag captions.

A scene is a background colour and one or two shapes; `draw` turns it into a picture, `caption` into
words. `HELD_OUT_SHAPES` and `HELD_OUT_STYLES` are drawn by the same code but never shown to the
checkpoint in training: they are the new concepts that a LoRA can teach it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (250, 220, 50),
    "green": (45, 150, 65),
    "blue": (40, 90, 210),
    "purple": (135, 55, 160),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
HELD_OUT_SHAPES = ("star", "heart")
STYLES = ("flat", "outlined")
HELD_OUT_STYLES = ("striped",)
SIZES = {"small": 16.0, "medium": 22.0, "large": 30.0}  # radius in pixels of a 128-pixel picture
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top": (0.5, 0.25),
    "top right": (0.75, 0.25),
    "left": (0.25, 0.5),
    "center": (0.5, 0.5),
    "right": (0.75, 0.5),
    "bottom left": (0.25, 0.75),
    "bottom": (0.5, 0.75),
    "bottom right": (0.75, 0.75),
}
_OVERSAMPLE = 4
_PLACE_WORDS = {"center": "in the center", "left": "on the left", "right": "on the right"}
Polygon = list[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """One shape of a scene; dx, dy (fractions of the picture), grow and turn are its jitter."""

    shape: str
    colour: str
    size: str
    position: str
    style: str = "flat"
    dx: float = 0.0
    dy: float = 0.0
    grow: float = 1.0
    turn: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background colour, its brightness jitter (0..255 steps), the figures from back to front."""

    background: str
    figures: tuple[Figure, ...]
    shade: int = 0


def outline(shape: str) -> list[Polygon]:
    """The polygons of a shape of unit radius around (0, 0), y down; a second polygon is a hole.

    Raises ValueError for a shape that is not of this world.
    """
    if shape == "circle":
        return [_arc(1.0)]
    if shape == "ring":
        return [_arc(1.0), _arc(0.52)]
    if shape == "square":
        return [_turns(0.98 * math.sqrt(2) * 0.86, 4, math.pi / 4)]
    if shape == "diamond":
        return [[(0.0, -1.12), (0.72, 0.0), (0.0, 1.12), (-0.72, 0.0)]]
    if shape == "triangle":
        return [[(0.0, -0.98), (1.02, 0.82), (-1.02, 0.82)]]
    if shape == "cross":
        a, b = 1.0, 0.36
        return [
            [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
             (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
        ]  # fmt: skip
    if shape == "star":
        radii = [1.12 if i % 2 == 0 else 0.46 for i in range(10)]
        return [[(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5) + 0.06)
                 for i, r in enumerate(radii)]]  # fmt: skip
    if shape == "heart":
        t = [2 * math.pi * i / 48 for i in range(48)]
        return [[(math.sin(a) ** 3 * 1.05,
                  -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a))
                  / 15.5 - 0.1) for a in t]]  # fmt: skip
    raise ValueError(f"no shape {shape!r}; there are {', '.join(SHAPES + HELD_OUT_SHAPES)}")


def _arc(radius: float) -> Polygon:
    return _turns(radius, 56, 0.0)


def _turns(radius: float, count: int, start: float) -> Polygon:
    angles = (start + 2 * math.pi * i / count for i in range(count))
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an RGB picture of size × size pixels, antialiased."""
    ground = _shaded(COLOURS[scene.background], scene.shade)
    picture = Image.new("RGB", (size, size), ground)
    for figure in scene.figures:
        _paint(picture, figure, size)
    return picture


def _shaded(colour: tuple[int, int, int], shade: int) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, c + shade)) for c in colour)
    return r, g, b


def _paint(picture: Image.Image, figure: Figure, size: int) -> None:
    radius = SIZES[figure.size] * figure.grow * size / SIZE
    x, y = POSITIONS[figure.position]
    cx, cy = (x + figure.dx) * size, (y + figure.dy) * size
    left, top = math.floor(cx - 1.3 * radius) - 2, math.floor(cy - 1.3 * radius) - 2
    side = 2 * math.ceil(1.3 * radius) + 5
    polygons = [placed(p, figure.turn, radius, cx - left, cy - top) for p in outline(figure.shape)]
    inside = mask(polygons, side)
    colour = Image.new("RGB", (side, side), COLOURS[figure.colour])
    if figure.style == "striped":
        colour.paste(_contrast(figure.colour), mask=_stripes(side, radius))
    if figure.style == "outlined":
        edge = _edge(polygons, side, width=max(1.5, 0.16 * radius))
        colour.paste(_contrast(figure.colour), mask=edge)
    picture.paste(colour, (left, top), inside)


def _contrast(colour: str) -> tuple[int, int, int]:
    return COLOURS["white"] if colour == "black" else COLOURS["black"]


def placed(polygon: Polygon, turn: float, radius: float, cx: float, cy: float) -> Polygon:
    c, s = math.cos(turn) * radius, math.sin(turn) * radius
    return [
        ((cx + x * c - y * s) * _OVERSAMPLE, (cy + x * s + y * c) * _OVERSAMPLE) for x, y in polygon
    ]


def mask(polygons: Sequence[Polygon], side: int) -> Image.Image:
    canvas = Image.new("L", (side * _OVERSAMPLE, side * _OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    for i, polygon in enumerate(polygons):
        pen.polygon(polygon, fill=0 if i else 255)
    return canvas.reduce(_OVERSAMPLE)


def _edge(polygons: Sequence[Polygon], side: int, width: float) -> Image.Image:
    canvas = Image.new("L", (side * _OVERSAMPLE, side * _OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    for polygon in polygons:
        closed = [*polygon, polygon[0], polygon[1]]
        pen.line(closed, fill=255, width=round(2 * width * _OVERSAMPLE), joint="curve")
    return canvas.reduce(_OVERSAMPLE)


def _stripes(side: int, radius: float) -> Image.Image:
    y, x = np.mgrid[0:side, 0:side]
    wave = np.sin((x + y) * (2 * math.pi / max(7.0, 0.55 * radius)))
    return Image.fromarray((wave > 0).astype(np.uint8) * 255)


def random_scene(
    rng: random.Random,
    shapes: Sequence[str] = SHAPES,
    styles: Sequence[str] = STYLES,
    two: float = 0.12,
) -> Scene:
    """A scene with jitter, its colours all different; `two`: the share with two figures."""
    background, first, second = rng.sample(list(COLOURS), 3)
    figures = [_random_figure(rng, shapes, styles, first)]
    if rng.random() < two:
        figures.append(_random_figure(rng, shapes, styles, second))
        pair = rng.choice(_FAR_APART)
        figures = [
            replace(f, position=at, size=rng.choice(["small", "medium"]))
            for f, at in zip(figures, pair, strict=True)
        ]
    return Scene(background, tuple(figures), rng.randint(-6, 6))


_FAR_APART = [
    (a, b) for a, at in POSITIONS.items() for b, to in POSITIONS.items() if math.dist(at, to) > 0.4
]


def _random_figure(
    rng: random.Random, shapes: Sequence[str], styles: Sequence[str], colour: str
) -> Figure:
    weights = [3 if s == "flat" else 1 for s in styles]
    return Figure(
        shape=rng.choice(shapes),
        colour=colour,
        size=rng.choice(list(SIZES)),
        position=rng.choice(list(POSITIONS)),
        style=rng.choices(styles, weights)[0],
        dx=rng.uniform(-0.03, 0.03),
        dy=rng.uniform(-0.03, 0.03),
        grow=rng.uniform(0.92, 1.08),
        turn=rng.uniform(-0.12, 0.12),
    )


def tags(scene: Scene) -> list[list[str]]:
    """The tags of a scene, one list for each figure and one for the ground."""
    groups = [
        [f"{f.colour} {f.shape}", f.size, f.position, *([f.style] if f.style != "flat" else [])]
        for f in scene.figures
    ]
    return [*groups, [f"{scene.background} background"]]


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """The caption: tags in canonical order, or with `rng` shuffled, thinned, or as a sentence."""
    groups = tags(scene)
    if rng is None:
        return ", ".join(tag for group in groups for tag in group)
    if rng.random() < 0.2:
        return sentence(scene)
    for group in groups[:-1]:
        extra = [t for t in group[1:] if rng.random() > 0.1]
        rng.shuffle(extra)
        group[1:] = extra
    if rng.random() < 0.5:
        groups.insert(0, groups.pop())
    return ", ".join(tag for group in groups for tag in group)


def sentence(scene: Scene) -> str:
    """The caption as an English sentence."""
    parts = []
    for f in scene.figures:
        style = "" if f.style == "flat" else f"{f.style} "
        place = _PLACE_WORDS.get(f.position, f"at the {f.position}")
        parts.append(f"a {f.size} {style}{f.colour} {f.shape} {place}")
    return f"{' and '.join(parts)} on a {scene.background} background"
