"""What clients send: JSON of bounded size, and pictures in it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from extensions_lib.datasets.pictures import PictureProblem, open_picture

if TYPE_CHECKING:
    from fastapi import HTTPException
    from PIL.Image import Image

MOST_BYTES = 100 << 20  # of an order: a picture of 75 MB in base64


def refusal(status: int, why: str) -> HTTPException:
    """The answer to an order that cannot be carried out."""
    from fastapi import HTTPException

    return HTTPException(status_code=status, detail=why)


async def read_json(request: Any, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a request's body, of which no more than `most` bytes are ever held.

    Raises HTTPException: 415 for another type (a page of another site can send those), 413, 422.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refusal(415, "Send the order as application/json.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise refusal(413, f"The order is larger than {most >> 20} MB.")
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise refusal(422, "The order is not JSON.") from None
    if not isinstance(found, dict):
        raise refusal(422, "The order must be a JSON object.")
    return found


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
