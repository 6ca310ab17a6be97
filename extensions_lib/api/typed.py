"""A path as people type or paste it."""

from __future__ import annotations

import os
from pathlib import Path

from extensions_lib.errors import CrucibleError

_LONGEST = 255  # bytes of a name, on nearly every disk


def typed_path(text: str | None, base: Path, asked: str) -> Path:
    """The path meant: quotes of a file manager and `~` are understood, a relative one begins at
    `base`. Raises CrucibleError with the sentence `asked` for none, and for what no disk can hold.
    """
    plain = (text or "").strip().strip("\"'")
    if not plain or "\0" in plain:
        raise CrucibleError(asked)
    try:
        path = base / Path(plain).expanduser()
    except RuntimeError:
        raise CrucibleError(f"{plain}: nobody here has that name; check the path.") from None
    if long := [part for part in path.parts if len(os.fsencode(part)) > _LONGEST]:
        raise CrucibleError(f"{long[0][:40]}…: is longer than a name on a disk may be; shorten it.")
    return path
