"""Finding pictures in folders as they are, and opening files of every kind, broken ones too."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from extensions_lib.datasets import pictures, survey
from extensions_lib.datasets.pictures import PictureProblem, find, natural, open_picture
from extensions_lib.datasets.survey import is_upright

Array = np.ndarray[Any, Any]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


# --- finding ----------------------------------------------------------------------------------


def test_pictures_come_in_natural_order_without_what_is_none(tmp_path: Path) -> None:
    put(tmp_path, "10.png", "9.PNG", "b.webp", "A.jpg", "a2.jpeg", "2.txt", ".hid.png", "c/1.png")
    found = [path.relative_to(tmp_path).as_posix() for path in find(tmp_path)]
    assert found == ["9.PNG", "10.png", "A.jpg", "a2.jpeg", "b.webp"]
    assert natural("a10") > natural("A9")


def test_subfolders_on_request_but_no_hidden_ones(tmp_path: Path) -> None:
    put(tmp_path, "z.png", "s10/1.png", "s9/2.png", "s9/deep/3.gif", ".crucible/thumb.png")
    found = [path.relative_to(tmp_path).as_posix() for path in find(tmp_path, subfolders=True)]
    assert found == ["s9/2.png", "s9/deep/3.gif", "s10/1.png", "z.png"]
    assert find(str(tmp_path)) == [tmp_path / "z.png"]


def test_links_are_followed_but_no_loop(tmp_path: Path) -> None:
    put(tmp_path, "set/1.png", "elsewhere/2.png")
    (tmp_path / "set" / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "other").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set" / "dead.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    names = [path.name for path in find(tmp_path / "set", subfolders=True)]
    assert names == ["1.png", "2.png"]


def test_a_folder_that_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "1.png", "locked/2.png")
    scandir = os.scandir

    def refuse(folder: Any) -> Any:
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(pictures.os, "scandir", refuse)
    problems: list[str] = []
    assert find(tmp_path, True, problems) == [tmp_path / "1.png"]
    assert len(problems) == 1 and "locked: cannot be read (Permission denied)" in problems[0]
    with pytest.raises(PictureProblem, match="locked"):
        find(tmp_path, True)
    with pytest.raises(PictureProblem, match="locked"):
        find(tmp_path / "locked", True, problems)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    with pytest.raises(PictureProblem, match=r"gone: there is no such folder"):
        find(tmp_path / "gone")
    with pytest.raises(PictureProblem, match=r"1\.png: is not a folder"):
        find(tmp_path / "1.png")


# --- opening ----------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def png_16(values: Array) -> bytes:
    """A PNG of 16 bits a channel, [H, W, channels], written by the format's specification."""
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def palette(transparency: int | bytes) -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    image.info["transparency"] = transparency
    return image


def rgba(*pixels: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (len(pixels), 1))
    image.putdata(pixels)
    return image


WHITE = (255, 255, 255)
OVER_WHITE: dict[str, tuple[Callable[[], bytes], list[tuple[int, int, int]]]] = {
    "alpha": (
        lambda: saved(rgba((255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)), "PNG"),
        [RED, WHITE, (204, 204, 204)],
    ),
    "alpha in WEBP": (
        lambda: saved(rgba((255, 0, 0, 255), (9, 9, 9, 0)), "WEBP", lossless=True),
        [RED, WHITE],
    ),
    "grey with alpha": (
        lambda: saved(rgba((90, 90, 90, 255), (90, 90, 90, 0)).convert("LA"), "PNG"),
        [(90, 90, 90), WHITE],
    ),
    "a palette's clear entry": (
        lambda: saved(palette(1), "PNG", transparency=1),
        [RED, WHITE, BLUE],
    ),
    "a palette's half clear entries": (
        lambda: saved(palette(b"\xff\x00\x33"), "PNG", transparency=b"\xff\x00\x33"),
        [RED, WHITE, (204, 204, 255)],
    ),
    "a GIF's clear entry": (
        lambda: saved(palette(2), "GIF", transparency=2),
        [RED, GREEN, WHITE],
    ),
    "a key colour": (
        lambda: saved(
            rgba((255, 0, 0, 255), (0, 255, 0, 255)).convert("RGB"), "PNG", transparency=GREEN
        ),
        [RED, WHITE],
    ),
    "grey": (lambda: saved(Image.fromarray(np.uint8([[7, 200]])), "PNG"), [(7,) * 3, (200,) * 3]),
    "black and white": (
        lambda: saved(Image.fromarray(np.array([[True, False]])), "PNG"),
        [WHITE, (0, 0, 0)],
    ),
    "grey of 16 bits": (
        lambda: png_16(np.array([[[0], [255], [256], [0x8000], [0xFFFF]]])),
        [(0,) * 3, (0,) * 3, (1,) * 3, (128,) * 3, WHITE],
    ),
    "colour of 16 bits": (
        lambda: png_16(np.array([[[0xFFFF, 0x1234, 0]]])),
        [(255, 0x12, 0)],
    ),
    "colour of 16 bits with alpha": (
        lambda: png_16(np.array([[[0xFFFF, 0, 0, 0], [0xFFFF, 0, 0, 0xFFFF]]])),
        [WHITE, RED],
    ),
    "TIFF of 16 bits": (
        lambda: saved(Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)), "TIFF"),
        [(0,) * 3, (128,) * 3, WHITE],
    ),
    "CMYK": (
        lambda: saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"),
        [RED],
    ),
}


@pytest.mark.parametrize("kind", OVER_WHITE)
def test_every_kind_becomes_rgb_over_white(kind: str, tmp_path: Path) -> None:
    make, expected = OVER_WHITE[kind]
    content = make()
    opened = open_picture(content)
    assert opened.mode == "RGB"
    assert [tuple(pixel) for pixel in np.asarray(opened)[0]] == expected
    path = tmp_path / "p"
    path.write_bytes(content)
    assert open_picture(path).tobytes() == opened.tobytes()


def test_cmyk_jpeg_comes_in_its_colours() -> None:
    content = saved(Image.new("CMYK", (16, 16), (255, 0, 255, 0)), "JPEG", quality=100)
    red, green, blue = np.asarray(open_picture(content))[8, 8]
    assert green > 250 and red < 5 and blue < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    """A camera that stores in any of the eight ways shows the same scene."""
    scene = np.zeros((32, 48, 3), np.uint8)
    scene[:16, :24] = RED
    scene[:16, 24:] = GREEN
    undo: dict[
        int, Callable[[Array], Array]
    ] = {  # from EXIF 2.3, 4.6.4: where row and column 0 lie
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](scene)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = saved(stored, kind, exif=exif.tobytes(), **how)
    upright = np.asarray(open_picture(content)).astype(int)
    assert upright.shape == scene.shape
    assert abs(upright - scene)[4:12, 4:20].max() < 4 and abs(upright - scene)[20:, 4:44].max() < 4
    as_stored = np.asarray(open_picture(content, upright=False)).astype(int)
    assert as_stored.shape == np.asarray(stored).shape
    assert abs(as_stored - np.asarray(stored)).mean() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    how: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    assert np.asarray(open_picture(content))[4, 4].tolist() == list(RED)


def test_least_decodes_a_jpeg_smaller_but_never_below(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((1200, 1600)).convert("RGB").save(path, quality=95)
    assert open_picture(path).size == (1200, 1600)
    assert open_picture(path, least=896).size == (1200, 1600)
    smaller = open_picture(path, least=800)
    assert smaller.size == (600, 800)
    exact = np.asarray(open_picture(path).resize((600, 800), Image.Resampling.BOX)).astype(int)
    assert abs(np.asarray(smaller) - exact).max() <= 3
    assert open_picture(path, least=5000).size == (1200, 1600)


def test_an_orientation_holds_for_a_draft_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.new("RGB", (800, 400)), "JPEG", exif=exif.tobytes())
    assert open_picture(content, least=200).size == (100, 200)


# --- what is none -----------------------------------------------------------------------------


def test_broken_files_say_so(tmp_path: Path) -> None:
    whole = saved(Image.effect_noise((64, 64), 90).convert("RGB"), "PNG")
    jpeg = saved(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    cases = {
        "empty.png": b"",
        "text.jpg": b"this is no picture",
        "cut.png": whole[: len(whole) // 2],
        "head.png": whole[:20],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.webp": saved(Image.effect_noise((64, 64), 90).convert("RGB"), "WEBP")[:500],
        "lying.gif": b"GIF89a" + b"\xff" * 40,
        "float.tif": saved(Image.new("F", (4, 4)), "TIFF"),
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(PictureProblem) as caught:
                open_picture(source)
            said = str(caught.value)
            assert said.startswith(f"{path}: " if source is path else "the picture: "), said
            assert "\n" not in said


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(PictureProblem, match="is no file"):
            open_picture(path)
    with pytest.raises(PictureProblem, match=r"gone\.png: cannot be read \(No such file"):
        open_picture(tmp_path / "gone.png")


def test_huge_pictures_are_refused_before_they_are_decoded() -> None:
    """A header that promises 100 gigabytes."""
    content = bytearray(saved(Image.new("RGB", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", 200_000, 200_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(PictureProblem, match="more than 180 million pixels"):
        open_picture(bytes(content))


def test_the_limit_is_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    open_picture(saved(Image.new("RGB", (10, 10)), "PNG"))
    with pytest.raises(PictureProblem, match="11 × 10"):
        open_picture(saved(Image.new("RGB", (11, 10)), "PNG"))


def test_broken_exif_does_not_make_a_broken_picture(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.webp", "c.png")]
    red = Image.new("RGB", (3, 2), RED)
    red.save(paths[0], exif=b"junk")
    red.save(paths[1], exif=b"junk", lossless=True)
    about = PngInfo()
    about.add_text("Raw profile type exif", "\nexif\n  10\n45zz")
    red.save(paths[2], pnginfo=about)
    for path in paths:
        assert open_picture(path).getpixel((0, 0)) == RED
    assert is_upright(paths[0])
    found = survey.survey(paths, smallest=1)
    assert not found.broken and set(found.sizes.values()) == {(3, 2)}


def test_too_little_memory_is_not_called_a_broken_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(picture: Image.Image) -> Image.Image:
        raise MemoryError

    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "as_rgb", full)
    with pytest.raises(PictureProblem, match=r"a\.png: takes more memory than there is"):
        open_picture(tmp_path / "a.png")
