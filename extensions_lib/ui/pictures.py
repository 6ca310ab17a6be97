"""Where pictures go on disk: names that never collide."""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

NUMBERED = re.compile(r"(\d+)-")


def numbered(path: Path, count: int) -> list[Path]:
    """`out.png` for one picture; `out-1.png`, `out-2.png`, … for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(1, count + 1)]


class OutputFolder:
    """The standalone host's pictures: one folder a day, numbered on (`00012-1234567.png`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(self, picture: Image, infotext: str, seed: int) -> Path:
        """Saves a picture under the next free number. Raises: FileProblem."""
        from extensions_lib.hosts.standalone.png import save_png

        folder = self.root / date.today().isoformat()
        names = os.listdir(folder) if folder.is_dir() else []
        taken = [int(found[1]) for name in names if (found := NUMBERED.match(name))]
        path = folder / f"{max(taken, default=0) + 1:05d}-{seed}.png"
        save_png(picture, infotext, path)
        return path
