"""A picture as it is trained on: cropped to its bucket, and changed as the numbers drawn say.

All chance comes in as numbers from 0 to 1, `DRAWS` of them for each picture, so that whoever
draws them can draw them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from extensions_lib.datasets.items import Picture
from extensions_lib.datasets.options import DataOptions
from extensions_lib.datasets.pictures import PictureProblem, open_picture, orientation, turned
from extensions_lib.datasets.placing import Placed

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWS = 10
_FLIP, _CROP, _COLOR, _FACE = 0, (1, 2), (3, 4, 5), (6, 7, 8, 9)
_FILTERS = {
    "lanczos": "LANCZOS",
    "bicubic": "BICUBIC",
    "cubic": "BICUBIC",
    "bilinear": "BILINEAR",
    "linear": "BILINEAR",
    "area": "BOX",
    "nearest": "NEAREST",
}
_HUE = 8 / 180  # largest turn of the colours, as a share of the circle
_GAMMA = 0.05
_LATENT = 8  # pixels of a latent's side


@dataclass(frozen=True)
class Seen:
    """A picture in its bucket: `pixels` [H, W, 3] of bytes, `mask` [H/8, W/8] from 0 to 1.

    The mask, float32, is the mean over each latent's pixels; None: the picture has none.
    """

    pixels: Any
    mask: Any | None
    placed: Placed

    def mirrored(self) -> Seen:
        """With left and right exchanged."""
        mask = None if self.mask is None else self.mask[:, ::-1].copy()
        return Seen(self.pixels[:, ::-1].copy(), mask, self.placed.mirrored())


def seen(
    picture: Picture, draws: Sequence[float] | None = None, made_ready: Image | None = None
) -> Seen:
    """The picture in its bucket: the centre of it as it is, or changed by `draws`.

    `made_ready`: what `ready` made of it, if that is done already. Raises as `ready`.
    """
    options = picture.options
    image = made_ready or ready(picture)
    placed = picture.where
    if draws is not None:
        placed = _placed(picture, draws)
    pixels = _cut(image, placed, options)
    mask = _mask(picture, placed)
    if draws is not None and options.color_aug:
        pixels = coloured(pixels, [draws[each] for each in _COLOR])
    found = Seen(pixels, mask, placed)
    return found.mirrored() if draws is not None and mirrors(options, draws) else found


def ready(picture: Picture) -> Image:
    """The picture as it is before anything is drawn: open, and resized where that is settled.

    Raises PictureProblem where it cannot be read, or is another one than was looked at.
    """
    opened = open_picture(picture.path)
    if opened.size != picture.size:
        raise PictureProblem(f"{picture.path}: has changed meanwhile; start again.")
    if _face(picture) is not None:
        return opened
    return _resized(opened, picture.where, picture.options)


def guide_of(picture: Picture, draws: Sequence[float] | None = None) -> Any | None:
    """The bytes [H, W, 3] of what goes with the picture, cropped as that is; None: there is none.

    Raises PictureProblem where it cannot be read.
    """
    if picture.guide is None or picture.options.masked_loss:
        return None
    placed = picture.where if draws is None else _placed(picture, draws)
    pixels = _cut(open_picture(picture.guide), placed, picture.options)
    turned = draws is not None and mirrors(picture.options, draws)
    return pixels[:, ::-1] if turned else pixels


def mirrors(options: DataOptions, draws: Sequence[float]) -> bool:
    """Whether left and right are exchanged this time."""
    return options.flip_aug and draws[_FLIP] < 0.5


# --- where it is cropped ----------------------------------------------------------------------


def _placed(picture: Picture, draws: Sequence[float]) -> Placed:
    options = picture.options
    face = _face(picture)
    if face is not None:
        return around_face(picture.where, face, options, [draws[each] for each in _FACE])
    if options.random_crop:
        return picture.where.moved(*(draws[each] for each in _CROP))
    return picture.where


def _face(picture: Picture) -> tuple[int, int, int, int] | None:
    return face_in(picture.path.stem) if picture.options.face_crop_aug_range else None


def face_in(name: str) -> tuple[int, int, int, int] | None:
    """A face's centre x, y, width and height, from a name such as `name_320_200_90_110`."""
    parts = name.split("_")[-4:]
    if len(name.split("_")) < 5 or not all(part.isdecimal() for part in parts):
        return None
    x, y, width, height = (int(part) for part in parts)
    return (x, y, width, height) if width and height else None


def around_face(
    placed: Placed, face: tuple[int, int, int, int], options: DataOptions, draws: Sequence[float]
) -> Placed:
    """Cropped around a face (centre x, y, width, height), four numbers drawn.

    The crop's shorter side is `face_crop_aug_range` times the face's longer one, between the two;
    with random_crop the face is mostly near the middle, else nearly there. A picture is enlarged
    only to fill its bucket.
    """
    least, most = sorted(options.face_crop_aug_range)
    long, short = max(face[2:]), min(placed.bucket)
    cover = max(placed.bucket[0] / placed.size[0], placed.bucket[1] / placed.size[1])
    lowest = max(cover, min(1.0, short / (long * most)))
    highest = max(lowest, min(1.0, short / (long * least)))
    scale = lowest + (highest - lowest) * draws[0]
    resized, starts = [], []
    for axis in (0, 1):
        wanted = placed.bucket[axis]
        length = max(wanted, int(placed.size[axis] * scale + 0.5))
        centre = int(face[axis] * scale + 0.5)
        start = centre - wanted // 2
        if options.random_crop:
            reach = max(length - centre, centre)
            start += _whole(draws[1 + axis], reach) + _whole(draws[3 - axis], reach) - reach
        elif least != most and long > short // 10 and long >= 40:
            start += _whole(draws[1 + axis], 2 * (long // 20)) - long // 20
        resized.append(length)
        starts.append(max(0, min(start, length - wanted)))
    return replace(placed, resized=(resized[0], resized[1]), left=starts[0], top=starts[1])


def _whole(part: float, most: int) -> int:
    """A whole number from 0 to `most`."""
    return min(most, int(part * (most + 1)))


# --- pixels -----------------------------------------------------------------------------------


def _cut(picture: Image, placed: Placed, options: DataOptions) -> Any:
    """The bytes [H, W, channels] of the picture, resized and cropped."""
    import numpy as np

    return np.asarray(_resized(picture, placed, options).crop(placed.box))


def _resized(picture: Image, placed: Placed, options: DataOptions) -> Image:
    from PIL import Image

    if picture.size == placed.resized:
        return picture
    return picture.resize(placed.resized, Image.Resampling[_FILTERS[options.resize_interpolation]])


def coloured(pixels: Any, draws: Sequence[float]) -> Any:
    """In a third of the cases, either the hue turned by up to 16 degrees or a gamma of up to 5 %.

    pixels [H, W, 3] of bytes; three numbers drawn. (sd-scripts applies its gamma to values up to
    255, which makes a picture much darker or clips it; here they run up to 1.)
    """
    import numpy as np
    from PIL import Image

    gate, which, amount = draws
    if gate > 0.33:
        return pixels
    amount = 2 * amount - 1
    if which > 0.5:
        turned = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
        turned[..., 0] += np.uint8(round(amount * _HUE * 256) % 256)
        return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))
    scale = np.arange(256) / 255
    table = np.round(255 * scale ** (1 + amount * _GAMMA)).astype(np.uint8)
    return table[pixels]


def _mask(picture: Picture, placed: Placed) -> Any | None:
    """Where is learnt: the mask of the picture's name, else how opaque it is; None: everywhere."""
    options = picture.options
    if options.masked_loss and picture.guide is not None:
        mask = open_picture(picture.guide).getchannel("R")
    elif options.alpha_mask:
        alpha = alpha_of(picture)
        if alpha is None:
            return None
        mask = alpha
    else:
        return None
    if mask.size != picture.size:
        from PIL import Image

        mask = mask.resize(picture.size, Image.Resampling.BILINEAR)
    values = _cut(mask, placed, options)
    height, width = (side // _LATENT for side in values.shape)
    blocks = values.reshape(height, _LATENT, width, _LATENT).astype("float32")
    return blocks.mean((1, 3)) / 255


def alpha_of(picture: Picture) -> Image | None:
    """How opaque a picture is, upright, as bytes; None if it is so everywhere."""
    from PIL import Image

    with Image.open(picture.path) as opened:
        if "A" not in opened.getbands() and "transparency" not in opened.info:
            return None
        turn = orientation(opened)  # loading loses it in some formats
        return turned(opened.convert("RGBA").getchannel("A"), turn)
