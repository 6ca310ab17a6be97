"""Thumbnails: made once for each content, bounded, by many threads at once."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extensions_lib.datasets import thumbnails
from extensions_lib.datasets.pictures import PictureProblem
from extensions_lib.datasets.thumbnails import Thumbnails
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.files.cache import FileCache


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (400, 300)) -> Path:
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_a_thumbnail_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = thumbnails.open_picture
    monkeypatch.setattr(
        thumbnails, "open_picture", lambda path, **how: made.append(path) or real(path, **how)
    )
    cache = Thumbnails(tmp_path / "cache", side=64)
    one = picture(tmp_path / "a.png")
    small = cache.get(one)
    with Image.open(small) as shown:
        assert shown.size == (64, 48) and shown.format == "WEBP"
    assert cache.get(one) == small == Thumbnails(tmp_path / "cache", side=64).get(one)
    moved = Path(shutil.move(one, tmp_path / "moved.png"))
    assert cache.get(moved) == small
    assert len(made) == 1
    picture(moved, seed=1)
    assert cache.get(moved) != small
    assert Thumbnails(tmp_path / "cache", side=32).get(moved) != cache.get(moved)
    assert len(made) == 3


def test_the_oldest_shown_go_first(tmp_path: Path) -> None:
    pictures = [picture(tmp_path / f"{i}.png", i) for i in range(8)]
    size = Thumbnails(tmp_path / "probe", side=64).get(pictures[0]).stat().st_size
    cache = Thumbnails(tmp_path / "cache", side=64, most_bytes=int(5.5 * size))
    places = [cache.get(one) for one in pictures[:5]]
    for age, place in enumerate(places):
        os.utime(place, (age, age))
    cache.get(pictures[0])  # shown again
    for one in pictures[5:]:
        cache.get(one)
    left = set((tmp_path / "cache").iterdir())
    assert sum(path.stat().st_size for path in left) <= 5.5 * size
    assert places[0] in left and places[1] not in left and places[2] not in left


def test_many_at_once(tmp_path: Path) -> None:
    pictures = [picture(tmp_path / f"{i}.png", i, (64, 48)) for i in range(12)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    asked = [*pictures, tmp_path / "broken.png", tmp_path / "gone.png"]
    cache = Thumbnails(tmp_path / "cache")
    pages: list[list[Path | CrucibleError]] = []
    threads = [
        threading.Thread(target=lambda: pages.append(cache.many(asked, threads=4)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 4
    for page in pages:
        assert page[:12] == pages[0][:12]
        assert [type(found) for found in page[12:]] == [PictureProblem, PictureProblem]
    assert len(list((tmp_path / "cache").iterdir())) == 12


def test_hashes_are_kept_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = picture(tmp_path / "a.png")
    facts = FileCache(tmp_path)
    small = Thumbnails(tmp_path / "cache", facts=facts).get(one)
    monkeypatch.setattr(thumbnails, "_sha256", lambda path: pytest.fail("was read again"))
    assert Thumbnails(tmp_path / "cache", facts=facts).get(one) == small


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(FileProblem, match="cannot be written"):
        Thumbnails(tmp_path / "cache").get(picture(tmp_path / "a.png"))
