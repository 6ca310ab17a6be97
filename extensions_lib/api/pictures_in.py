"""Pictures in what clients send."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from extensions_lib.api.routes import refusal
from extensions_lib.datasets.pictures import PictureProblem, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 100 << 20  # of an order: a picture of 75 MB in base64


def picture_of(sent: Any) -> Image:
    """The picture in an order: base64, or a data URL of it. Raises HTTPException."""
    if not sent:
        raise refusal(404, "Image not found")
    if not isinstance(sent, str):
        raise refusal(422, "image: takes a picture in base64.")
    if sent.startswith(("http://", "https://", "file:")):
        raise refusal(422, "image: takes the picture itself in base64; addresses are not fetched.")
    if sent.startswith("data:"):
        sent = sent.partition(",")[2]
    try:
        raw = base64.b64decode(sent)
    except (ValueError, binascii.Error):
        raise refusal(422, "image: is not base64.") from None
    try:
        return open_picture(raw)
    except PictureProblem as problem:
        raise refusal(422, f"image: {str(problem).removeprefix('the picture: ')}") from None
