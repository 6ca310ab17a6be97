"""The demo's training set: drawn pictures of a shape that the demo checkpoint has never seen.

folder/train/10_heart/*.png, *.txt      the new shape, with captions
folder/known/1_shape/*.png, *.txt       what the checkpoint knows: regularisation pictures
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

from extensions_lib.demo import world

SHAPE = "heart"


class LessonSet(NamedTuple):
    """The two folders of a set, as `train_data_dir` and `reg_data_dir` take them."""

    train: Path
    known: Path


def draw_lesson(
    folder: Path, shape: str = SHAPE, pictures: int = 48, known: int = 96, seed: int = 0
) -> LessonSet:
    """Draws the set into `folder`; the same arguments draw the same files."""
    rng = random.Random(seed)
    made = LessonSet(folder / "train", folder / "known")
    _draw(made.train / f"10_{shape}", pictures, (shape,), rng)
    _draw(made.known / "1_shape", known, world.SHAPES, rng)
    return made


def _draw(folder: Path, count: int, shapes: tuple[str, ...], rng: random.Random) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = world.random_scene(rng, shapes, two=0.0)
        world.draw(scene).save(folder / f"{number:03d}.png")
        text = world.caption(scene) + "\n"
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
