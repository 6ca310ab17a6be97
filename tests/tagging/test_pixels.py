"""Prepared pictures against the formats' own words in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from extensions_lib.tagging import pixels
from extensions_lib.tagging.manifest import Contract
from extensions_lib.tagging.pixels import area, prepare, to_input
from tests.tagging.tiny_taggers import padded, resampled

SIZES = [(40, 40), (97, 41), (30, 75), (13, 7), (64, 1), (24, 24)]
SIDE = 24


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("how", ["bicubic", "bilinear", "lanczos", "area"])
@pytest.mark.parametrize("size", SIZES)
def test_padding_comes_before_resizing(size: tuple[int, int], how: str) -> None:
    picture = noise(*size)
    made = prepare(picture, Contract(interpolation=how), SIDE)
    square = padded(np.asarray(picture).astype(np.float64), (255, 255, 255))
    exact = resampled(square, SIDE, SIDE, how)
    assert made.shape == (SIDE, SIDE, 3) and made.dtype == np.uint8
    assert abs(made - exact).max() <= 1.01


@pytest.mark.parametrize("size", SIZES)
def test_squashed(size: tuple[int, int]) -> None:
    picture = noise(*size)
    made = prepare(picture, Contract(fit="squash", interpolation="bilinear"), SIDE)
    exact = resampled(np.asarray(picture).astype(np.float64), SIDE, SIDE, "bilinear")
    assert abs(made - exact).max() <= 1.01


def test_shrinking_comes_before_padding_with_its_colour() -> None:
    picture = noise(96, 41)
    contract = Contract(fit="shrink", ground=(124, 116, 104), interpolation="bilinear")
    made = prepare(picture, contract, SIDE)
    exact = resampled(np.asarray(picture).astype(np.float64), 24, 10, "bilinear")
    assert abs(made[7:17] - exact).max() <= 1.01
    assert (made[:7] == (124, 116, 104)).all() and (made[17:] == (124, 116, 104)).all()


@pytest.mark.parametrize(("size", "rows", "columns"), [((96, 41), 10, 24), ((33, 80), 24, 9)])
def test_edges_are_repeated(size: tuple[int, int], rows: int, columns: int) -> None:
    made = prepare(noise(*size), Contract(fit="edge", interpolation="area"), SIDE)
    top, left = 12 - rows // 2, 12 - columns // 2
    inside = made[top : top + rows, left : left + columns]
    exact = resampled(np.asarray(noise(*size)).astype(np.float64), columns, rows, "area")
    assert abs(inside - exact).max() <= 0.51
    assert (made[:top, left : left + columns] == inside[:1]).all()
    assert (made[top + rows :, left : left + columns] == inside[-1:]).all()
    assert (made[top : top + rows, :left] == inside[:, :1]).all()
    assert (made[top : top + rows, left + columns :] == inside[:, -1:]).all()


def test_area_keeps_the_mean_and_enlarges_by_repeating() -> None:
    values = np.random.default_rng(0).integers(0, 256, (90, 77, 3), np.uint8)
    assert abs(area(values, 30, 13).mean() - values.mean()) < 0.5
    assert (area(values, 77, 90) == values).all()
    assert (area(values[:2, :2], 4, 4) == values[:2, :2].repeat(2, 0).repeat(2, 1)).all()


def test_a_picture_of_one_pixel() -> None:
    for fit in ("pad", "shrink", "squash", "edge"):
        made = prepare(Image.new("RGB", (1, 1), (9, 8, 7)), Contract(fit=fit), SIDE)
        assert (made == (9, 8, 7)).all()
    assert prepare(Image.new("RGB", (4000, 2)), Contract(fit="edge"), SIDE).max() == 0


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("colour", ["RGB", "BGR"])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_inputs_are_as_the_contract_says(layout: str, colour: str, kind: Any) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for contract in (Contract(), Contract(range=1), Contract(range=1, mean=mean, std=std)):
        made = to_input(batch, replace(contract, colour=colour), layout, kind)
        values = batch.astype(np.float64)[..., :: -1 if colour == "BGR" else 1]
        exact = (values / 255 * contract.range - contract.mean) / contract.std
        exact = exact.transpose(0, 3, 1, 2) if layout == "NCHW" else exact
        assert made.dtype == kind and made.flags.c_contiguous
        close = 2e-6 if kind is np.float32 else 2e-3
        np.testing.assert_allclose(made, exact, rtol=close, atol=close)


@pytest.mark.parametrize("how", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("size", SIZES)
def test_without_the_square_it_comes_to_the_same(
    size: tuple[int, int], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = Contract(interpolation=how, ground=(124, 116, 104))
    square = prepare(noise(*size), contract, SIDE).astype(int)
    monkeypatch.setattr(pixels, "_LARGEST_SQUARE", 0)
    assert abs(prepare(noise(*size), contract, SIDE) - square).max() <= 1


@pytest.mark.parametrize("size", [(20, 30_000), (30_000, 20)])
def test_a_long_strip_takes_no_square_of_its_length(size: tuple[int, int]) -> None:
    seen = []
    new = Image.new

    def counted(mode: str, size: tuple[int, int], *more: Any) -> Image.Image:
        seen.append(size[0] * size[1])
        return new(mode, size, *more)

    picture = Image.new("RGB", size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "new", counted)
        made = prepare(picture, Contract(), 448)
    assert made.shape == (448, 448, 3) and made.min() < 255
    assert max(seen) < 30_000 * 1_500


def test_area_by_strips_is_area() -> None:
    picture = noise(700, 31)
    made = area(np.asarray(picture), 50, 9)
    exact = resampled(np.asarray(picture).astype(np.float64), 50, 9, "area")
    assert abs(made - exact).max() <= 0.51
