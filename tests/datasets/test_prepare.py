"""Preparing pictures: sizes, crops, copies, what is left out; the originals stay as they are."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from extensions_lib.datasets import buckets, faces
from extensions_lib.datasets.pictures import find
from extensions_lib.datasets.prepare import (
    Preparation,
    PrepareProblem,
    crop_box,
    fitted,
    prepare,
    target_size,
)
from extensions_lib.errors import FileProblem

SIDES = st.integers(1, 4000)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a crop says where it is from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    (made / "sub").mkdir(parents=True)
    gradient(300, 200).save(made / "wide.png")
    gradient(200, 300).save(made / "sub" / "tall.jpg", quality=95)
    gradient(128, 128).save(made / "square.webp", lossless=True)
    (made / "broken.png").write_bytes((made / "wide.png").read_bytes()[:300])
    (made / "wide.txt").write_bytes(b"\xef\xbb\xbfwide, caf\xc3\xa9\r\n")
    (made / "sub" / "tall.caption").write_text("tall")
    return made


def run(folder: Path, output: Path, **options: Any) -> Any:
    return prepare(folder, find(folder, True), output, Preparation(**options), threads=2)


def test_squares(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    out = tmp_path / "out"
    done = run(folder, out, size="square", side=128, mirror=True)
    assert contents(folder) == before
    assert set(contents(out)) == {
        "wide.png", "wide.txt", "wide_mirrored.png", "wide_mirrored.txt", "square.webp",
        "square_mirrored.png", "sub/tall.png", "sub/tall.caption", "sub/tall_mirrored.png",
        "sub/tall_mirrored.caption",
    }  # fmt: skip
    assert [Path(note.name).name for note in done.left_out] == ["broken.png"]
    assert (out / "wide.txt").read_bytes() == (folder / "wide.txt").read_bytes()
    assert (out / "square.webp").read_bytes() == (folder / "square.webp").read_bytes()
    for name in ("wide.png", "sub/tall.png", "wide_mirrored.png"):
        assert Image.open(out / name).size == (128, 128)
    wide = np.asarray(Image.open(out / "wide.png"), int)
    # 300 × 200 keeps its middle 200 columns and all its rows
    assert abs(wide[64, 0, 0] - 255 * 50 / 300) < 3 and abs(wide[64, -1, 0] - 255 * 250 / 300) < 3
    assert wide[0, 64, 1] < 3 and wide[-1, 64, 1] > 252
    mirrored = np.asarray(Image.open(out / "wide_mirrored.png"), int)
    assert np.array_equal(mirrored, wide[:, ::-1])
    assert len(done.written) == 6 and not done.stopped


def test_a_second_run_goes_on_and_touches_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out, size="square", side=128, mirror=True)
    (out / "wide.txt").write_text("worked on")
    (out / "wide_mirrored.png").unlink()
    before = contents(out)
    done = run(folder, out, size="square", side=64, mirror=True)
    assert [path.name for path in done.written] == ["wide_mirrored.png"]
    after = contents(out)
    assert after.pop("wide_mirrored.png") and after == before
    assert sum("is in the output folder already" in note.reason for note in done.left_out) == 2


@pytest.mark.parametrize(
    ("size", "side", "enlarge", "expected"),
    [
        ("longer", 150, False, (150, 100)),
        ("longer", 600, False, (300, 200)),
        ("longer", 600, True, (600, 400)),
        ("shorter", 100, False, (150, 100)),
        ("shorter", 300, False, (300, 200)),
        ("as it is", 64, True, (300, 200)),
        ("buckets", 128, False, (128, 128)),
        ("buckets", 256, False, None),
        ("buckets", 256, True, (320, 192)),
        ("square", 201, False, None),
        ("square", 201, True, (201, 201)),
    ],
)
def test_sizes(size: str, side: int, enlarge: bool, expected: tuple[int, int] | None) -> None:
    options = Preparation(size=size, side=side, enlarge=enlarge)
    made = fitted(gradient(300, 200), options)
    assert (made.size if made else None) == expected


@given(SIDES, SIDES, SIDES, SIDES, st.floats(-100, 5000), st.floats(-100, 5000))
def test_a_crop_lies_within_the_picture(
    width: int, height: int, wide: int, high: int, x: float, y: float
) -> None:
    left, top, right, bottom = crop_box((width, height), (wide, high), (x, y))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert right - left == width or bottom - top == height
    # as near to the target's shape as whole pixels allow
    assert abs((right - left) * high - (bottom - top) * wide) <= max(wide, high)


def test_a_crop_follows_its_focus() -> None:
    assert crop_box((300, 200), (100, 100)) == (50, 0, 250, 200)
    assert crop_box((300, 200), (100, 100), (10, 90)) == (0, 0, 200, 200)
    assert crop_box((300, 200), (100, 100), (180, 90)) == (80, 0, 280, 200)


@given(SIDES, SIDES, st.sampled_from([256, 512, 768, 1024]), st.sampled_from([32, 64]))
def test_buckets_are_of_the_step_and_the_area(
    width: int, height: int, side: int, step: int
) -> None:
    options = Preparation(side=side, step=step)
    wide, high = target_size((width, height), options)
    assert wide % step == 0 and high % step == 0 and 0 < wide * high <= side * side
    assert target_size((height, width), options) == (high, wide)


def test_the_buckets_of_kohya_s_trainer() -> None:
    found = buckets.sizes(512 * 512, 64, 256, 1024)
    assert {(512, 512), (448, 576), (576, 448), (256, 1024), (1024, 256), (320, 768)} <= set(found)
    assert buckets.nearest((320, 768), found) == (320, 768)
    assert buckets.nearest((1000, 1000), found) == (512, 512)


def test_boxes_are_cut_first(folder: Path, tmp_path: Path) -> None:
    path = folder / "wide.png"
    boxes = {path: (100, 20, 180, 100)}
    options = Preparation(size="as it is")
    done = prepare(folder, [path], tmp_path / "out", options, boxes=boxes)
    assert not done.left_out
    cut = Image.open(tmp_path / "out" / "wide.png")
    assert cut.tobytes() == Image.open(path).crop(boxes[path]).tobytes()
    done = prepare(folder, [path], tmp_path / "out2", options, boxes={path: (100, 20, 301, 100)})
    assert "not within its 300 × 200 pixels" in done.left_out[0].reason


def test_turned_pictures_come_out_upright(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient(128, 64).save(tmp_path / "set" / "a.jpg", exif=exif)
    done = run(tmp_path / "set", tmp_path / "out", size="as it is")
    made = Image.open(done.written[0])
    assert made.size == (64, 128) and made.getexif().get(0x0112) is None


def test_names_that_would_meet(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.png", "a.jpg", "a.webp"):
        gradient(100, 80).save(tmp_path / "set" / name)
    (tmp_path / "set" / "a.txt").write_text("all of them")
    done = run(tmp_path / "set", tmp_path / "out", size="longer", side=64)
    assert len(done.written) == 3 and not done.left_out
    names = {Path(name).stem for name in contents(tmp_path / "out")}
    assert len(contents(tmp_path / "out")) == 6 and len(names) == 3


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats(folder: Path, tmp_path: Path, format: str) -> None:
    done = run(folder, tmp_path / "out", size="longer", side=100, format=format)
    assert {Image.open(path).format for path in done.written} == {format.upper()}


@pytest.mark.parametrize("place", ["set", "set/out", "."])
def test_never_among_the_originals(folder: Path, tmp_path: Path, place: str) -> None:
    before = contents(tmp_path)
    with pytest.raises(PrepareProblem, match="name a folder beside it"):
        run(folder, tmp_path / place)
    with pytest.raises(PrepareProblem, match="is no picture of"):
        prepare(folder, [tmp_path / "b.png"], tmp_path / "out", Preparation())
    assert contents(tmp_path) == before


def test_a_link_to_the_set_is_the_set(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PrepareProblem, match="name a folder beside it"):
        run(folder, tmp_path / "link" / "out")


def test_a_full_disk_ends_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileProblem, match="disk is full"):
        run(folder, tmp_path / "out", size="square", side=64)
    assert contents(folder) == before and contents(tmp_path / "out") == {}


def test_progress_and_stop(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for index in range(40):
        gradient(80, 80).save(tmp_path / "set" / f"{index}.png")
    stop, told = threading.Event(), []

    def on_progress(done: int, total: int) -> None:
        told.append((done, total))
        if done == 5:
            stop.set()

    paths = find(tmp_path / "set")
    options = Preparation(size="square", side=64)
    done = prepare(
        tmp_path / "set", paths, tmp_path / "out", options,
        threads=2, on_progress=on_progress, stop=stop,
    )  # fmt: skip
    assert done.stopped and 5 <= len(done.written) < 20
    assert told[:5] == [(number, 40) for number in range(1, 6)]
    assert not prepare(tmp_path / "set", paths, tmp_path / "out", options).stopped
    assert len(contents(tmp_path / "out")) == 40


def test_faces_without_opencv_are_refused_before_anything(folder: Path, tmp_path: Path) -> None:
    why = faces.why_not()
    if why is None:
        pytest.skip("OpenCV is there")
    assert "OpenCV" in why and "crop at the centre" in why
    with pytest.raises(PrepareProblem, match="OpenCV"):
        run(folder, tmp_path / "out", crop="faces")
    assert not (tmp_path / "out").exists()


def test_an_opencv_that_finds_no_faces_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    faces._cascade.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="5.0.0"))
    why = faces.why_not()
    faces._cascade.cache_clear()
    assert why is not None and "OpenCV 5.0.0" in why and "crop at the centre" in why


def test_a_face_is_kept_in_sight(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    photo = pytest.importorskip("skimage.data").astronaut()  # 512 × 512, the face right of the top
    wide = np.zeros((512, 1200, 3), np.uint8)
    wide[:, 600:1112] = photo
    (tmp_path / "set").mkdir()
    Image.fromarray(wide).save(tmp_path / "set" / "a.png")
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "set" / "none.png")
    done = run(tmp_path / "set", tmp_path / "out", size="square", side=128, crop="faces")
    [note] = done.notes
    assert note.name.endswith("none.png") and "no face was found" in note.reason
    made = Image.open(tmp_path / "out" / "a.png")
    [face, *_] = faces.find_faces(made.resize((512, 512)))
    assert 150 < (face[0] + face[2]) / 2 < 362
