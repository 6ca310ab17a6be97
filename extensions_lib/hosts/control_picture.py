"""The condition picture of a ControlNet: received, and brought to the size of what is sampled."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from extensions_lib.datasets.pictures import PictureProblem, as_rgb, open_picture
from extensions_lib.errors import FileProblem

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_SAME = 0.01  # difference of two proportions that is not worth a word


def received(value: object) -> Image.Image | None:
    """What a page gives (a picture, None, or what is wrong with it) or a REST order: base64 text,
    also as a data URL.

    Raises FileProblem for anything else.
    """
    from PIL import Image

    if value is None or value == "":
        return None
    try:
        if isinstance(value, PictureProblem):
            raise value
        if isinstance(value, Image.Image):
            return as_rgb(value)
        if isinstance(value, str):
            return open_picture(_decoded(value))
    except (PictureProblem, ValueError) as problem:
        raise FileProblem(f"The control picture cannot be used: {problem}") from None
    raise FileProblem(f"The control picture is no picture but a {type(value).__name__}.")


def _decoded(text: str) -> bytes:
    head, comma, rest = text.partition(",")
    try:
        return base64.b64decode(rest if comma and head.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise PictureProblem("it is neither a picture nor base64 text of one.") from None


class ControlPicture:
    """A condition picture, at any size that is asked for; the last size is kept.

    `note` says what was cut off, once a size of other proportions was asked for.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = as_rgb(image)
        self._kept: tuple[tuple[int, int], Tensor] | None = None
        self.note: str | None = None

    def __call__(self, width: int, height: int) -> Tensor:
        """[1, 3, height, width], float32 in -1…1: scaled, its middle kept where sides differ."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        if self._kept is None or self._kept[0] != (width, height):
            own = self._image.width / self._image.height
            if abs(own / (width / height) - 1) > _SAME:
                self.note = (
                    f"The control picture is {self._image.width} × {self._image.height}, the"
                    f" picture {width} × {height}: what sticks out was cut off."
                )
            fitted = ImageOps.fit(self._image, (width, height), Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1)
            self._kept = (width, height), pixels.unsqueeze(0).float() / 127.5 - 1
        return self._kept[1]
