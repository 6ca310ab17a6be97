"""Broken, too small and repeated pictures are found, and different ones are not taken for one."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from extensions_lib.datasets.duplicates import Fingerprint, alike, fingerprint
from extensions_lib.datasets.pictures import find
from extensions_lib.datasets.survey import survey


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A random smooth picture in colour."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def groups(*pictures: Image.Image) -> list[list[int]]:
    return alike([fingerprint(picture) for picture in pictures])


def test_a_survey(tmp_path: Path) -> None:
    scene(1).save(tmp_path / "1.png")
    scene(1, 640, 480).save(tmp_path / "2.jpg", quality=80)
    scene(2, 100, 300).save(tmp_path / "3.webp")
    exif = Image.Exif()
    exif[0x0112] = 8
    scene(3, 200, 90).save(tmp_path / "4.jpg", exif=exif)
    (tmp_path / "5.png").write_bytes(b"no picture")
    (tmp_path / "6.png").write_bytes((tmp_path / "1.png").read_bytes()[:2000])
    (tmp_path / "7.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:2000])
    told = []
    found = survey(find(tmp_path), smallest=128, on_progress=lambda *at: told.append(at))
    assert {path.name: size for path, size in found.sizes.items()} == {
        "1.png": (320, 240), "2.jpg": (640, 480), "3.webp": (100, 300), "4.jpg": (90, 200)
    }  # fmt: skip
    assert [Path(note.name).name for note in found.broken] == ["5.png", "6.png", "7.jpg"]
    assert [path.name for path in found.too_small] == ["3.webp", "4.jpg"]
    assert [[path.name for path in group] for group in found.duplicates] == [["2.jpg", "1.png"]]
    assert told == [(n, 7) for n in range(1, 8)] and not found.stopped


def test_stop(tmp_path: Path) -> None:
    for seed in range(30):
        scene(seed, 40, 30).save(tmp_path / f"{seed}.png")
    stop = threading.Event()
    found = survey(find(tmp_path), threads=1, on_progress=lambda *at: stop.set(), stop=stop)
    assert found.stopped and len(found.sizes) < 6


@pytest.mark.parametrize("seed", range(5))
def test_copies_look_alike(seed: int) -> None:
    base = scene(seed)
    copies = [
        base.resize((160, 120)),
        base.resize((1000, 750), Image.Resampling.LANCZOS),
        base.filter(ImageFilter.GaussianBlur(1)),
        ImageEnhance.Brightness(base).enhance(0.95),
    ]
    others = [scene(seed + 100 + n) for n in range(5)]
    mirrored = base.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert groups(base, *copies, *others, mirrored) == [[0, 1, 2, 3, 4]]


def test_even_pictures_differ_by_colour() -> None:
    plain = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "white", "red")]
    assert groups(*plain) == [[0, 3]]


def test_grouping_equals_comparing_each_with_each() -> None:
    draw = np.random.default_rng(3)
    bases = draw.integers(0, 2, (40, 256)) * 2 - 1
    bits = np.repeat(bases, 30, 0)  # more than are compared at a time
    for row in bits:
        row[draw.integers(0, 256, draw.integers(0, 9))] *= -1
    colour = np.zeros(192, np.float32)
    prints = [Fingerprint(row.astype(np.float32), colour) for row in bits]
    most = 10
    near = (bits[:, None, :8] != bits[None, :, :8]).sum(-1)  # in parts: memory
    for start in range(8, 256, 8):
        part = bits[:, start : start + 8]
        near += (part[:, None] != part[None]).sum(-1)
    expected, seen = [], set()
    for index in range(len(bits)):
        if index in seen:
            continue
        group, waiting = {index}, [index]
        while waiting:
            for other in np.flatnonzero(near[waiting.pop()] <= most):
                if int(other) not in group:
                    group.add(int(other))
                    waiting.append(int(other))
        seen |= group
        expected += [sorted(group)] if len(group) > 1 else []
    assert alike(prints, most) == expected


def test_nothing_is_like_nothing() -> None:
    assert alike([]) == [] and groups(scene(1)) == []
