"""Pictures as PNG files that carry their infotext, as WebUI writes and reads them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.files.safe import atomic_write

if TYPE_CHECKING:
    from PIL import Image


def png_bytes(image: Image.Image, infotext: str = "") -> bytes:
    """The PNG file, with the infotext in the text chunk `parameters`; equal for equal input."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if infotext:
        info.add_text("parameters", infotext)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Image.Image, infotext: str, path: Path) -> None:
    """Writes the PNG file, whole or not at all. Raises FileProblem when it cannot be written."""
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(png_bytes(image, infotext))


def read_png_infotext(path: Path) -> str:
    """The infotext in a PNG file, "" when it has none."""
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get("parameters", ""))
