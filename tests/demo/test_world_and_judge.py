"""The drawn world, and the judge that has to read it before it may judge anything else."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from extensions_lib.demo import bench, judge, world

COUNT = 250


@pytest.mark.parametrize("style", world.STYLES)
def test_the_judge_reads_drawn_pictures(style: str) -> None:
    shapes = (*world.SHAPES, *world.HELD_OUT_SHAPES)
    scenes = bench.scenes(COUNT, seed=11, shapes=shapes, styles=(style,))
    right = bench.shares([bench.hits(scene, world.draw(scene)) for scene in scenes])
    for aspect in ("background", "colour", "shape", "position"):
        assert right[aspect] >= 0.98, (aspect, right)


def test_the_judge_tells_wrong_pictures() -> None:
    scenes = bench.scenes(COUNT, seed=11)
    shifted = scenes[1:] + scenes[:1]
    right = bench.shares(
        [bench.hits(s, world.draw(t)) for s, t in zip(scenes, shifted, strict=True)]
    )
    assert right["shape"] < 0.1 and right["background"] < 0.3 and right["position"] < 0.3


def test_an_empty_picture_shows_nothing() -> None:
    assert judge.read(Image.new("RGB", (128, 128), "red")) is None


def test_drawing_repeats_and_scales() -> None:
    scene = world.random_scene(random.Random(4), two=0)
    assert world.draw(scene).tobytes() == world.draw(scene).tobytes()
    small, large = judge.read(world.draw(scene)), judge.read(world.draw(scene, 256))
    assert small is not None and large is not None and small.shape == large.shape


def test_training_scenes_hold_nothing_held_out() -> None:
    rng = random.Random(0)
    figures = [f for _ in range(2000) for f in world.random_scene(rng).figures]
    assert {f.shape for f in figures} == set(world.SHAPES)
    assert {f.style for f in figures} == set(world.STYLES)
    assert not {*world.SHAPES} & {*world.HELD_OUT_SHAPES}
    assert not {*world.STYLES} & {*world.HELD_OUT_STYLES}


def test_captions_say_the_scene() -> None:
    scene = world.Scene("blue", (world.Figure("star", "red", "large", "top left", "striped"),))
    assert world.caption(scene) == "red star, large, top left, striped, blue background"
    said = world.sentence(scene)
    assert said == "a large striped red star at the top left on a blue background"
    for seed in range(50):
        words = world.caption(scene, random.Random(seed))
        assert "red" in words and "star" in words and "blue background" in words


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teapot.*circle"):
        world.outline("teapot")
