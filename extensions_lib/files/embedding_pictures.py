"""Embeddings that travel inside a picture, as AUTOMATIC1111's WebUI saves them while training.

Two forms, both holding one JSON text in which `{"TORCHTENSOR": …}` stands for a tensor:

- base64 in the PNG text chunk `sd-ti-embedding`;
- in the pixels: a block left of the picture and one right of it, each behind a black column, hold
  the low and the high halves of the bytes of the zlib-packed text in the lowest four bits of every
  channel, each mixed with a known row of numbers. This survives whatever drops text chunks, in any
  lossless format.

Read without torch: an index looks at many pictures that are only previews.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.header import AGAIN, opened, short

if TYPE_CHECKING:
    import numpy as np

PICTURES = (".png", ".webp")
KEYWORD = b"sd-ti-embedding"
TENSOR = "TORCHTENSOR"
MAX_PIXELS = 1 << 24
MAX_TEXT = 1 << 26  # bytes of JSON; 75 vectors of 1280 numbers take 2 MB
_PNG = b"\x89PNG\r\n\x1a\n"


def picture_data(path: Path) -> dict[str, Any] | None:
    """What a picture carries as an embedding, tensors as nested lists; None for a plain picture.

    Raises FileProblem: the file cannot be read, or what it carries is broken.
    """
    text = _png_text(path)
    if text is not None:
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise FileProblem(f"{path}: its embedding is not base64 text; {AGAIN}") from None
        return _parsed(path, raw)
    raw_pixels = _from_pixels(path)
    return None if raw_pixels is None else _parsed(path, raw_pixels)


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw, object_hook=_tensor_as_list)
    except (ValueError, RecursionError) as error:
        raise FileProblem(f"{path}: its embedding is not JSON ({short(error)}); {AGAIN}") from None
    if not isinstance(data, dict):
        raise FileProblem(f"{path}: its embedding is not a JSON object; {AGAIN}")
    return data


def _tensor_as_list(value: dict[str, Any]) -> Any:
    return value.get(TENSOR, value)


def list_shape(value: object) -> tuple[int, ...] | None:
    """The shape of nested lists of numbers, [n] or [n, width]; None if they are nothing such."""
    if not isinstance(value, list) or not value:
        return None
    if all(type(item) in (int, float) for item in value):
        return (len(value),)
    rows = {list_shape(item) for item in value}
    row = rows.pop()
    return (len(value), *row) if row is not None and len(row) == 1 and not rows else None


# --- PNG text chunks --------------------------------------------------------------------------


def _png_text(path: Path) -> bytes | None:
    """The text of the chunk named `KEYWORD`, whichever of PNG's three kinds it is."""
    with opened(path) as file:
        if file.read(len(_PNG)) != _PNG:
            return None
        size = path.stat().st_size
        for kind, length in _chunks(file, size):
            if kind not in (b"tEXt", b"zTXt", b"iTXt") or length > MAX_TEXT:
                continue
            keyword, _, rest = file.read(length).partition(b"\0")
            if keyword == KEYWORD:
                return _chunk_text(path, kind, rest)
    return None


def _chunks(file: IO[bytes], size: int) -> Iterator[tuple[bytes, int]]:
    """Kind and length of every chunk; the file stands at its data meanwhile."""
    start = len(_PNG)
    while start + 8 <= size:
        file.seek(start)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        if start + 12 + length > size:
            return  # cut off: what lies before is still good
        yield head[4:], length
        start += 12 + length


def _chunk_text(path: Path, kind: bytes, rest: bytes) -> bytes:
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]  # the method, always 0
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        # flag, method, language, translated keyword
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not packed:
        return rest
    unpacked = _unpacked(rest, MAX_TEXT)
    if unpacked is None:
        raise FileProblem(f"{path}: the text of its embedding cannot be unpacked; {AGAIN}")
    return unpacked


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """zlib's text; None if it is broken, or longer than `limit`. What follows it is ignored."""
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(packed, limit)
    except zlib.error:
        return None
    return text if reader.eof else None


# --- pixels -----------------------------------------------------------------------------------


def _from_pixels(path: Path) -> bytes | None:
    """The JSON text in the pixels of a picture, or None if there is none."""
    halves = _halves(_pixels(path))
    if halves is None:
        return None
    low, high = halves
    packed = ((high << 4) | low).tobytes()
    # zlib at its highest level, as the text is always packed; spares ordinary pictures the rest
    if not packed.startswith(b"\x78\xda"):
        return None
    return _unpacked(packed, min(MAX_TEXT, 8 * len(packed) + 65536))


def _pixels(path: Path) -> np.ndarray:
    """The picture [height, width, 3], uint8. Raises FileProblem."""
    import numpy as np
    from PIL import Image

    with opened(path) as file:
        try:
            with Image.open(file) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise FileProblem(
                        f"{path}: is a picture of {picture.width} × {picture.height} pixels;"
                        f" at most {MAX_PIXELS} are searched for an embedding"
                    )
                return np.asarray(picture.convert("RGB"))
        except FileProblem:
            raise
        except Exception as error:  # Pillow's readers raise anything for a broken picture
            raise FileProblem(f"{path}: is not a readable picture ({short(error)})") from error


def _halves(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The two blocks' half bytes, or None where there are no two blocks of one shape."""
    import numpy as np

    lit: np.ndarray = np.all(pixels > 0, axis=2)
    columns, rows = np.flatnonzero(lit.any(axis=0)), np.flatnonzero(lit.any(axis=1))
    if not len(columns):
        return None
    nibbles = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(nibbles.sum(axis=(0, 2), dtype=np.int64) == 0)
    if len(black) < 2:
        return None
    low, high = nibbles[:, : black[0]], nibbles[:, black[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        return None
    mask = _mask(low.size)
    return low.reshape(-1) ^ mask, high.reshape(-1) ^ mask


def _mask(count: int) -> np.ndarray:
    """The numbers mixed into the half bytes: s ← 1664525·s + 1013904223 (mod 2³²) from 0, each
    modulo 255, their lowest four bits."""
    import numpy as np

    factor, offset = np.uint32(1664525), np.uint32(1013904223)
    states = np.array([offset], dtype=np.uint32)
    with np.errstate(over="ignore"):
        while len(states) < count:
            # one jump as far as the row is long doubles it
            states = np.concatenate([states, states * factor + offset])
            factor, offset = factor * factor, factor * offset + offset
    return ((states[:count] % 255) & 0x0F).astype(np.uint8)


def stated_name(data: Mapping[str, Any]) -> str | None:
    """The name that the embedding itself states; the WebUI goes by it, not by the file's."""
    name = data.get("name")
    return name if isinstance(name, str) and name.strip() else None
