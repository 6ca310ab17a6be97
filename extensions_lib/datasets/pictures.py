"""Finding the pictures of a folder, and opening any of them as plain RGB."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"),
        *(".bmp", ".gif", ".tif", ".tiff", ".avif"),
    }
)
# RGB of this size takes 540 MB; what is larger is a mistake or an attack.
MOST_PIXELS = 180_000_000

_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # grey of 16 bits, in the modes of all Pillows
_ORIENTATION = 0x0112
# What undoes each EXIF orientation, as the names of PIL.Image.Transpose.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_NATURAL = re.compile("([0-9]+)")


class PictureProblem(FileProblem):
    """A picture or a folder of pictures that cannot be read."""


# --- finding ----------------------------------------------------------------------------------


def is_picture(name: str | os.PathLike[str]) -> bool:
    """Whether a file of this name is taken for a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def natural(name: str) -> tuple[tuple[str | int, ...], ...]:
    """A sort key: `2.png` before `10.png`, `a.png` before `a2.png`, whatever the case."""
    stem, suffix = os.path.splitext(name.casefold())
    return tuple(
        tuple(int(part) if i % 2 else part for i, part in enumerate(_NATURAL.split(each)))
        for each in (stem, suffix)
    )


def find(
    folder: str | os.PathLike[str], subfolders: bool = False, problems: list[str] | None = None
) -> list[Path]:
    """The pictures of a folder in natural order; hidden files and folders are left out.

    Links are followed, each real folder once, so that a link to a folder above is no loop. The
    paths begin with `folder`. Subfolders that cannot be read are said in `problems`. Raises
    PictureProblem where the folder itself is missing or cannot be read, and for a subfolder where
    no `problems` are given.
    """
    root = Path(folder)
    found = [
        (tuple(natural(part) for part in (*below, name)), (*below, name))
        for below, names in _folders(root, subfolders, problems)
        for name in names
    ]
    found.sort()
    return [root.joinpath(*parts) for _, parts in found]


def _folders(
    root: Path, subfolders: bool, problems: list[str] | None
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each folder by its parts below the root, with the pictures in it."""
    seen: set[str] = set()
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        below = waiting.pop()
        folder = os.path.join(root, *below)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                items = [item for item in listing if not item.name.startswith(".")]
        except OSError as error:
            problem = _folder_problem(folder, error)
            if problems is None or not below:
                raise problem from error
            problems.append(str(problem))
            continue
        # is_file() is false for pipes and for links to nothing
        yield below, [item.name for item in items if is_picture(item.name) and item.is_file()]
        if subfolders:
            waiting += [(*below, item.name) for item in items if item.is_dir()]


def _folder_problem(folder: str, error: OSError) -> PictureProblem:
    if isinstance(error, FileNotFoundError):
        return PictureProblem(f"{folder}: there is no such folder; check the path.")
    if isinstance(error, NotADirectoryError):
        return PictureProblem(f"{folder}: is not a folder; name the folder that it is in.")
    return PictureProblem(f"{folder}: cannot be read ({error.strerror}); check its permissions.")


# --- opening ----------------------------------------------------------------------------------


def open_picture(
    source: str | os.PathLike[str] | bytes, *, least: int | None = None, upright: bool = True
) -> Image:
    """The picture in RGB, decoded; of an animation its first frame.

    What is transparent becomes white, also palette entries and key colours; grey of 16 bits is
    scaled to 8; CMYK is converted without its colour profile. `upright` turns it as its EXIF
    orientation says, False leaves it as stored. With `least`, a JPEG may be decoded at a half, a
    quarter or an eighth as long as its longer side keeps that many pixels: faster, not exact.
    Raises PictureProblem for what is no picture, broken, or larger than MOST_PIXELS.
    """
    from PIL import Image

    name = "the picture" if isinstance(source, bytes) else os.fspath(source)
    try:
        with Image.open(_opened(source)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise _too_large(name, f"{picture.width} × {picture.height}")
            if least is not None:
                _draft(picture, least)
            # asked before loading, which for some formats loses it
            turn = orientation(picture) if upright else 1
            picture.load()
            plain = as_rgb(picture)
    except PictureProblem:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, "it") from error
    except Image.UnidentifiedImageError as error:
        raise PictureProblem(f"{name}: is no picture of a kind that can be read here.") from error
    except OSError as error:
        raise PictureProblem(f"{name}: cannot be read ({error.strerror or error}).") from error
    except MemoryError as error:
        raise PictureProblem(f"{name}: takes more memory than there is.") from error
    except Exception as error:  # a decoder raises anything over a broken file
        raise PictureProblem(f"{name}: is a broken picture ({_said(error)}).") from error
    return turned(plain, turn)


def orientation(picture: Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 also where EXIF is broken: pixels may be sound."""
    try:
        said = picture.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises anything over what may stand there
        return 1
    return said if isinstance(said, int) and said in _UPRIGHT else 1


def turned(picture: Image, by: int) -> Image:
    """The picture upright, if it is stored in the orientation `by`."""
    from PIL import Image

    return picture.transpose(Image.Transpose[_UPRIGHT[by]]) if by in _UPRIGHT else picture


def _opened(source: str | os.PathLike[str] | bytes) -> io.BytesIO | str:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = os.fspath(source)
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise PictureProblem(f"{path}: is no file; name a picture.")
    return path


def _draft(picture: Image, least: int) -> None:
    """Has a JPEG's decoder scale while it decodes; nothing happens for other formats."""
    longer = max(picture.size)
    if longer > least:
        width, height = (-(-side * least // longer) for side in picture.size)
        picture.draft(None, (width, height))


def as_rgb(picture: Image) -> Image:
    """A picture of any mode in RGB, as `open_picture` makes it; always another object.

    Raises ValueError for a mode that cannot be shown.
    """
    from PIL import Image

    if picture.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if picture.mode in _WIDE:
        picture = _eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(picture, mask=picture)
        return ground
    return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()


def _eight_bits(picture: Image) -> Image:
    """The high bytes, as Pillow keeps them of 16-bit colour; its own conversion clips in places."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        raise ValueError("grey values outside 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _too_large(name: str, what: str) -> PictureProblem:
    return PictureProblem(
        f"{name}: {what} is more than {MOST_PIXELS // 1_000_000} million pixels; scale it down."
    )


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
