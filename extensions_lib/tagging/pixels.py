"""A picture made fit for a model: a square of its size, still bytes; and bytes made its input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from extensions_lib.tagging.manifest import Contract

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]
VERSION = 1  # of what `prepare` does: scores kept from another version count no more
_WIDEST = 3  # pixels that a kernel reaches to a side, at most (Lanczos)
_LARGEST_SQUARE = 8192  # pixels to a side: 256 MB
_STRIP = 256  # columns that AREA takes at once: its sums are eight times the picture


def prepare(image: Image, contract: Contract, size: int) -> Array:
    """The RGB picture as uint8 [size, size, 3], RGB, by the contract's fit and interpolation."""
    if contract.fit == "pad":
        return np.asarray(_padded(image, size, contract))
    if contract.fit == "squash":
        return np.asarray(_resized(image, size, size, contract.interpolation))
    if contract.fit == "shrink":
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        small = _resized(image, width, height, contract.interpolation)
        return np.asarray(_on_ground(small, size, contract.ground))
    return _with_edges(image, size, contract.interpolation)


def to_input(batch: Array, contract: Contract, layout: str, kind: Any = np.float32) -> Array:
    """What the model takes of uint8 [N, S, S, 3] RGB: its colour order, range, layout and dtype."""
    pixels = batch[..., ::-1] if contract.colour == "BGR" else batch
    if layout == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    scale = contract.range / 255
    plain = scale == 1 and not any(contract.mean) and set(contract.std) == {1}
    if plain:
        return np.ascontiguousarray(pixels, dtype=kind)
    shape = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
    # one multiplication and one subtraction a value: x·(scale / std) − mean / std
    std = np.asarray(contract.std, np.float64)
    factor = (scale / std).astype(np.float32).reshape(shape)
    less = (np.asarray(contract.mean, np.float64) / std).astype(np.float32).reshape(shape)
    made = np.ascontiguousarray(pixels, dtype=np.float32)
    made *= factor
    made -= less
    return made.astype(kind, copy=False)


def _padded(image: Image, size: int, contract: Contract) -> Image:
    """In the middle of a square of its longer side, which is then resized to `size`.

    A square that is too large, of gigabytes for a strip of some ten thousand pixels, is never
    made: the picture is resized across, then down, as Pillow does it.
    """
    from PIL import Image

    height, side = image.height, max(image.size)
    if side <= _LARGEST_SQUARE or contract.interpolation == "area":
        square = _on_ground(image, side, contract.ground)
        return _resized(square, size, size, contract.interpolation)
    how = Image.Resampling[contract.interpolation.upper()]
    across = _across(image, side, size, contract.ground, how)
    tall = Image.new("RGB", (size, side), contract.ground)
    tall.paste(across, (0, (side - height) // 2))
    return tall.resize((size, size), how)


def _across(image: Image, side: int, size: int, ground: tuple[int, ...], how: Any) -> Image:
    """The picture in the middle of `side` columns, resized to `size` columns.

    Only those are computed that the picture can reach, the others are ground. Where these are
    not all, a value may be rounded otherwise: Pillow takes the place of a part in float32.
    """
    from PIL import Image

    width, height = image.size
    left, scale = (side - width) // 2, side / size
    reach = math.ceil(_WIDEST * max(scale, 1)) + 1
    first = max(0, math.floor((left - reach) / scale))
    last = min(size, math.ceil((left + width + reach) / scale))
    start = max(0, math.floor(first * scale) - reach)
    end = min(side, math.ceil(last * scale) + reach)
    strip = Image.new("RGB", (end - start, height), ground)
    strip.paste(image, (left - start, 0))
    box = None
    if (first, last) != (0, size):
        box = (first * scale - start, 0, min(last * scale - start, end - start), height)
    part = strip.resize((last - first, height), how, box=box)
    whole = Image.new("RGB", (size, height), ground)
    whole.paste(part, (first, 0))
    return whole


def _on_ground(image: Image, side: int, ground: tuple[int, ...]) -> Image:
    """The picture in the middle of a square, the odd pixel at the right and the bottom."""
    from PIL import Image

    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), ground)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resized(image: Image, width: int, height: int, how: str) -> Image:
    from PIL import Image

    if image.size == (width, height):
        return image
    if how == "area":
        return Image.fromarray(area(np.asarray(image), width, height))
    return image.resize((width, height), Image.Resampling[how.upper()])


def area(pixels: Array, width: int, height: int) -> Array:
    """Each new pixel is the mean of the area it covers, uint8 [H, W, C] to [height, width, C].

    As TensorFlow's and OpenCV's AREA where it makes smaller.
    """
    strips = [
        _area_along(pixels[:, at : at + _STRIP].astype(np.float64), height, 0)
        for at in range(0, pixels.shape[1], _STRIP)
    ]
    made = _area_along(np.concatenate(strips, 1), width, 1)
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def _area_along(pixels: Array, count: int, axis: int) -> Array:
    old = pixels.shape[axis]
    zero = np.zeros_like(pixels.take([0], axis))
    total = np.concatenate([zero, pixels.cumsum(axis)], axis)  # the integral up to each edge
    edges = np.linspace(0, old, count + 1)
    whole = np.minimum(edges.astype(np.intp), old - 1)
    part = (edges - whole).reshape([-1 if i == axis else 1 for i in range(pixels.ndim)])
    at = total.take(whole, axis) + part * pixels.take(whole, axis)
    made: Array = np.diff(at, axis=axis) * (count / old)
    return made


def _with_edges(image: Image, size: int, how: str) -> Array:
    """Resized to fit, in the middle, its outermost pixels repeated around it."""
    longer = max(image.size)
    width, height = (max(1, side * size // longer) for side in image.size)
    small = np.asarray(_resized(image, width, height, how))
    top, left = size // 2 - height // 2, size // 2 - width // 2
    around = ((top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(small, around, mode="edge")
