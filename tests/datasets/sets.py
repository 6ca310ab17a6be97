"""Small sets of pictures with captions, for tests."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

Captions = dict[str, "str | bytes | None"]


def make(folder: Path, captions: Captions) -> Path:
    """A set: pictures by name with their captions, None for none."""
    for index, (name, text) in enumerate(captions.items()):
        picture = folder / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index % 256, 100, 50)).save(picture)
        if text is not None:
            raw = text if isinstance(text, bytes) else text.encode()
            picture.with_suffix(".txt").write_bytes(raw)
    return folder


def texts(folder: Path) -> dict[str, bytes]:
    """Every file of a set that is no picture and no journal, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".png" and ".crucible" not in path.parts
    }
