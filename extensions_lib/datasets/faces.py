"""Faces in photographs, by OpenCV where it is installed (the WebUIs bring it)."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

_LONGEST = 800  # pixels at which is searched
_one_at_a_time = threading.Lock()  # a cascade keeps state while it searches


def why_not() -> str | None:
    """Why faces cannot be found here, None if they can."""
    try:
        _cascade()
    except CrucibleError as problem:
        return str(problem)
    return None


def find_faces(picture: Image) -> list[Box]:
    """The faces in a picture in RGB that look at the camera, the largest first; drawn ones hardly.

    Raises CrucibleError where OpenCV is missing.
    """
    import numpy as np
    from PIL import Image

    cascade = _cascade()
    scale = max(1.0, max(picture.size) / _LONGEST)
    small = picture.convert("L").resize(
        (max(1, round(picture.width / scale)), max(1, round(picture.height / scale))),
        Image.Resampling.BILINEAR,
    )
    least = max(24, min(small.size) // 12)
    with _one_at_a_time:
        found = cascade.detectMultiScale(
            np.asarray(small), scaleFactor=1.1, minNeighbors=6, minSize=(least, least)
        )
    boxes = [
        (int(x * scale), int(y * scale), int((x + width) * scale), int((y + height) * scale))
        for x, y, width, height in found
    ]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))


@functools.lru_cache(maxsize=1)
def _cascade() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise CrucibleError(
            f"Faces are found by OpenCV, which cannot be loaded here ({error}): install"
            ' "opencv-python-headless<5" into this Python, or crop at the centre.'
        ) from None
    if not hasattr(cv2, "CascadeClassifier"):  # OpenCV 5 has it no more
        raise CrucibleError(
            f"OpenCV {cv2.__version__} finds no faces: install"
            ' "opencv-python-headless<5" into this Python, or crop at the centre.'
        )
    path = f"{cv2.data.haarcascades}haarcascade_frontalface_default.xml"
    cascade = cv2.CascadeClassifier(path)
    if cascade.empty():
        raise CrucibleError(f"{path}: is missing, so faces cannot be found; crop at the centre.")
    return cascade
