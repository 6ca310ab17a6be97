"""Where pictures lie in their buckets, and how they are changed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from extensions_lib.datasets.augment import DRAWS, around_face, coloured, face_in, seen
from extensions_lib.datasets.folders import Subset
from extensions_lib.datasets.items import Picture, find_pictures
from extensions_lib.datasets.options import (
    BucketOptions,
    DataOptions,
    contradictions,
    resolution_of,
    without_effect,
)
from extensions_lib.datasets.pictures import PictureProblem
from extensions_lib.datasets.placing import Placed, bucket_sizes, place
from extensions_lib.errors import CrucibleError
from extensions_lib.options import OptionProblem

SIDES = st.integers(64, 4000)


def test_the_buckets_of_512() -> None:
    options = BucketOptions(resolution="512", max_bucket_reso=1024)
    widths = [256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024]
    tall = {(width, min(1024, 512 * 512 // width // 64 * 64)) for width in widths}
    tall = {size for size in tall if size[1] >= 256}
    assert set(bucket_sizes(options)) == tall | {size[::-1] for size in tall} | {(512, 512)}


@pytest.mark.parametrize(
    ("size", "resized", "bucket", "corner"),
    [
        ((512, 512), (512, 512), (512, 512), (0, 0)),
        ((1000, 1000), (512, 512), (512, 512), (0, 0)),
        ((100, 180), (384, 691), (384, 640), (0, 25)),  # enlarged
        ((1600, 1200), (597, 448), (576, 448), (10, 0)),
        ((640, 384), (640, 384), (640, 384), (0, 0)),  # a bucket's own size stays
    ],
)
def test_places(
    size: tuple[int, int],
    resized: tuple[int, int],
    bucket: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    got = place(size, BucketOptions(resolution="512"))
    assert got == Placed(size, resized, bucket, *corner)


@pytest.mark.parametrize(
    ("size", "resized", "bucket"),
    [
        ((500, 300), (500, 300), (448, 256)),  # small: its own size, cut to the step
        ((1000, 714), (538, 384), (512, 384)),  # 1.4: 512/384 is nearer to it than 576/384
        ((1500, 1000), (576, 384), (576, 384)),
        ((64, 4000), (64, 4000), (64, 3968)),
    ],
)
def test_places_without_enlarging(
    size: tuple[int, int], resized: tuple[int, int], bucket: tuple[int, int]
) -> None:
    got = place(size, BucketOptions(resolution="512", bucket_no_upscale=True))
    assert (got.resized, got.bucket) == (resized, bucket)
    assert (got.left, got.top) == ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2)


def test_a_picture_smaller_than_the_step_is_refused_without_enlarging() -> None:
    with pytest.raises(CrucibleError, match="40 × 900 pixels are too few"):
        place((40, 900), BucketOptions(bucket_no_upscale=True))


@given(SIDES, SIDES, st.sampled_from(["512", "768,512"]))
def test_both_ways_round_are_alike(width: int, height: int, resolution: str) -> None:
    options = BucketOptions(resolution=resolution)
    one, other = place((width, height), options), place((height, width), options)
    assert one.bucket == other.bucket[::-1] and one.resized == other.resized[::-1]
    assert all(a >= b for a, b in zip(one.resized, one.bucket, strict=True))
    nearest = min(abs(math.log(w / h * height / width)) for w, h in bucket_sizes(options))
    assert abs(math.log(one.bucket[0] / one.bucket[1] * height / width)) <= nearest + 1e-12


def test_without_buckets_all_are_cropped_to_one() -> None:
    got = place((900, 300), BucketOptions(resolution="256,128", enable_bucket=False))
    assert got == Placed((900, 300), (384, 128), (256, 128), 64, 0)


def test_sizes_for_sdxl_are_where_the_crop_is() -> None:
    placed = Placed((1600, 1200), (597, 448), (576, 448), 10, 0)
    assert placed.sizes == (1200, 1600, 0, 10, 448, 576)
    assert placed.mirrored().sizes == (1200, 1600, 0, 11, 448, 576)
    assert placed.mirrored().mirrored() == placed
    assert placed.seen == pytest.approx((10 / 597 * 1600, 0, 586 / 597 * 1600, 1200))
    ends = [placed.moved(part, 0.9) for part in (0.0, 0.999)]
    assert [each.left for each in ends] == [0, 21] and ends[0].top == 0


@pytest.mark.parametrize("text", ["", "a", "512,", "512,512,512", "0", "-4", "51.5"])
def test_a_resolution_that_is_none(text: str) -> None:
    with pytest.raises(OptionProblem, match="resolution: takes a size"):
        resolution_of(BucketOptions(resolution=text))


# --- pixels -----------------------------------------------------------------------------------


def picture(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Picture:
    folder.mkdir(exist_ok=True)
    image.save(folder / name)
    settings = DataOptions(**{"resolution": "64", "min_bucket_reso": 64, **options})  # type: ignore[arg-type]
    found = find_pictures([Subset(folder)], settings)
    assert not found.broken
    return found.pictures[0]


def across(width: int = 96, height: int = 64) -> Image.Image:
    """Brighter to the right."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.repeat(np.tile(row, (height, 1))[..., None], 3, 2))


def draws(**given: float) -> list[float]:
    numbers = [0.9] * DRAWS
    for name, value in given.items():
        numbers[int(name[1:])] = value
    return numbers


def test_a_picture_is_cut_as_it_is_placed(tmp_path: Path) -> None:
    it = picture(tmp_path, across(), enable_bucket=False, cache_latents=False)
    got = seen(it)
    assert got.placed == Placed((96, 64), (96, 64), (64, 64), 16, 0) and got.mask is None
    assert np.array_equal(got.pixels, np.asarray(across())[:, 16:80])
    assert np.array_equal(got.mirrored().pixels, got.pixels[:, ::-1])


def test_mirrored_and_cropped_as_the_numbers_say(tmp_path: Path) -> None:
    it = picture(tmp_path, across(), enable_bucket=False, flip_aug=True, random_crop=True)
    left = seen(it, draws(_0=0.9, _1=0.0))
    right = seen(it, draws(_0=0.1, _1=0.999))
    assert np.array_equal(left.pixels, np.asarray(across())[:, :64]) and left.placed.left == 0
    assert np.array_equal(right.pixels, np.asarray(across())[:, 32:][:, ::-1])
    assert right.placed.left == 0  # what was cut away on the left is on the right now


def test_an_upright_picture_is_placed_as_people_see_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tmp_path.joinpath("s").mkdir()
    across(128, 64).save(tmp_path / "s/a.jpg", exif=exif)
    options = DataOptions(resolution="64", min_bucket_reso=32, bucket_reso_steps=8)
    [it] = find_pictures([Subset(tmp_path / "s")], options).pictures
    assert it.size == (64, 128) and it.where.bucket[1] > it.where.bucket[0]
    pixels = seen(it).pixels
    assert pixels[0].mean() < 20 and pixels[-1].mean() > 235


def test_a_picture_that_has_changed_is_refused(tmp_path: Path) -> None:
    it = picture(tmp_path, across())
    across(200, 64).save(it.path)
    with pytest.raises(PictureProblem, match="has changed meanwhile"):
        seen(it)


def test_masks_from_a_folder_and_from_transparency(tmp_path: Path) -> None:
    mask = Image.new("L", (48, 32))  # of half the size: it is brought to the picture's
    mask.paste(255, (24, 0, 48, 32))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks/a.jpg", quality=100)
    common = {"masked_loss": True, "conditioning_data_dir": str(tmp_path / "masks")}
    it = picture(tmp_path / "one", across(), enable_bucket=False, flip_aug=True, **common)
    got = seen(it).mask
    assert got is not None and got.shape == (8, 8) and got.dtype == np.float32
    assert got[:, :3].max() < 0.05 and got[:, 5:].min() > 0.95
    flipped = seen(it, draws(_0=0.0)).mask
    assert flipped is not None and np.array_equal(flipped, got[:, ::-1])

    clear = across(64, 64).convert("RGBA")
    clear.putalpha(Image.fromarray(np.tri(64, dtype=np.uint8) * 255))
    it = picture(tmp_path / "two", clear, alpha_mask=True)
    got = seen(it).mask
    assert got is not None and got[7, 0] == 1 and got[0, 7] == 0
    assert got[3, 3] == pytest.approx(36 / 64)
    assert seen(picture(tmp_path / "three", across(64, 64), alpha_mask=True)).mask is None


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "set").mkdir()
    across().save(tmp_path / "set/a.png")
    options = DataOptions(masked_loss=True, conditioning_data_dir=str(tmp_path / "masks"))
    found = find_pictures([Subset(tmp_path / "set")], options)
    assert not found.pictures and "has no picture of its name" in found.broken[0].reason


def test_colours_change_little_and_at_times() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert coloured(pixels, (0.34, 0.1, 0.9)) is pixels
    darker = coloured(pixels, (0.1, 0.1, 1.0)).astype(int) - pixels
    assert darker.max() <= 0 and -6 <= darker.min() < 0
    turned = coloured(np.full((2, 2, 3), (200, 60, 60), np.uint8), (0.1, 0.9, 1.0))
    assert abs(int(turned[0, 0, 0]) - 200) <= 2 and turned[0, 0, 1] > 80
    still = coloured(pixels, (0.1, 0.9, 0.5)).astype(int) - pixels
    assert abs(still).max() <= 8  # nothing but the rounding of HSV


def test_faces_are_in_the_name() -> None:
    assert face_in("pic_320_200_90_110") == (320, 200, 90, 110)
    assert face_in("320_200_90_110") is None
    assert face_in("a_b_320_x_90_110") is None


@given(
    st.lists(st.floats(0, 0.999), min_size=4, max_size=4),
    st.booleans(),
    st.integers(0, 1000),
    st.integers(20, 400),
)
def test_a_crop_around_a_face(drawn: list[float], wide: bool, x: int, long: int) -> None:
    options = DataOptions(
        resolution="256",
        enable_bucket=False,
        face_crop_aug_range=(2.0, 4.0),
        random_crop=wide,
    )
    whole = place((1000, 800), options)
    got = around_face(whole, (x, 400, long, long // 2), options, drawn)
    assert 0 <= got.left <= got.resized[0] - 256 and 0 <= got.top <= got.resized[1] - 256
    scale = got.resized[1] / 800
    assert 0.32 - 1e-3 <= scale <= 1  # covers the bucket, and is not enlarged
    if 0.321 < scale < 0.999:
        assert 1.98 <= 256 / (long * scale) <= 4.02
    if not wide and 0.4 < x / 1000 < 0.6:
        middle = got.left + 128
        assert abs(middle - x * scale) <= long // 20 + 2


# --- what does not go together ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"color_aug": True}, "cache_latents.*color_aug"),
        ({"random_crop": True, "color_aug": True}, "color_aug and random_crop"),
        ({"cache_latents": False, "cache_latents_to_disk": True, "random_crop": True}, "random_c"),
        ({"cache_text_encoder_outputs": True, "shuffle_caption": True}, "shuffle_caption"),
        ({"cache_text_encoder_outputs_to_disk": True, "enable_wildcard": True}, "enable_wild"),
        ({"cache_text_encoder_outputs": True, "token_warmup_step": 5}, "token_warmup_step"),
        ({"cache_text_encoder_outputs": True, "caption_tag_dropout_rate": 0.1}, "tag_dropout"),
        ({"masked_loss": True}, "there are no masks"),
        ({"min_bucket_reso": 576}, "min_bucket_reso: 576 is more"),
        ({"max_bucket_reso": 448}, "max_bucket_reso: 448 is less"),
        ({"bucket_reso_steps": 20}, "20 is no multiple of 8"),
        ({"enable_bucket": False, "resolution": "500"}, "multiples of 8"),
        ({"face_crop_aug_range": (2.0,), "cache_latents": False}, "takes two numbers"),
        ({"face_crop_aug_range": (2.0, 4.0), "cache_latents": False}, "switch enable_bucket off"),
        ({"caption_dropout_every_n_epochs": 1}, "would be empty"),
        ({"validation_split": 0.1, "validation_data_dir": "x"}, "name one of the two"),
    ],
)
def test_contradictions(options: dict[str, object], said: str) -> None:
    import re

    found = contradictions(DataOptions(**options))  # type: ignore[arg-type]
    assert any(re.search(said, each) for each in found)
    assert not contradictions(DataOptions())


def test_dropout_of_whole_prompts_goes_with_cached_ones() -> None:
    assert not contradictions(
        DataOptions(cache_text_encoder_outputs=True, caption_dropout_rate=0.1)
    )


def test_what_changes_nothing_is_said() -> None:
    assert "keep_tokens" in without_effect(DataOptions(keep_tokens=1))[0]
    assert not without_effect(DataOptions(keep_tokens=1, shuffle_caption=True))
    assert "min_bucket_reso" in without_effect(DataOptions(bucket_no_upscale=True))[0]
