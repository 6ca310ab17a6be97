"""`run.py bench tagger`: precision and recall of the demo tagger on drawn pictures it never saw."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from extensions_lib.demo import tagger, world
from extensions_lib.tagging.labels import GENERAL
from extensions_lib.tagging.taggers import Tagger, load_tagger

GOAL = 0.95
GROUPS: dict[str, Callable[[str], bool]] = {
    "shape and colour": lambda tag: tag.endswith(tuple(f"_{shape}" for shape in tagger.SHAPES)),
    "background": lambda tag: tag.endswith("_background"),
    "size": lambda tag: tag in world.SIZES,
    "place": lambda tag: tag.replace("_", " ") in world.POSITIONS,
    "style": lambda tag: tag in tagger.STYLES,
    "all": lambda tag: True,
}
Found = list[tuple[set[str], set[str]]]


def found_in(model: Tagger, count: int) -> Found:
    """(tags that are there, tags that the model gives at its threshold) of held-out pictures."""
    names = np.array([label.name for label in model.labels])
    general = np.array([label.category == GENERAL for label in model.labels])
    rng = random.Random(tagger.HELD_OUT_SEED)
    drawn = [tagger.scene(rng) for _ in range(count)]
    found: Found = []
    for scene in drawn:
        scores = model.score(model.prepare(world.draw(scene))[None])[0]
        given = general & (scores >= model.thresholds[GENERAL])
        found.append((tagger.tags_of(scene), set(names[given])))
    return found


def measures(found: Found, group: str = "all") -> tuple[float, float]:
    """(precision, recall) over all pictures, of the tags of a group."""
    chosen = GROUPS[group]
    right = given = there = 0
    for wanted, got in found:
        wanted, got = set(filter(chosen, wanted)), set(filter(chosen, got))
        right += len(wanted & got)
        given += len(got)
        there += len(wanted)
    return right / max(1, given), right / max(1, there)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="run.py bench tagger", description=__doc__)
    parser.add_argument("--models", type=Path, default=tagger.FOLDER.parent, metavar="DIR")
    parser.add_argument("--tagger", default="demo-tagger", help="another one of the same tags")
    parser.add_argument("--count", type=int, default=1000, help="pictures (1000)")
    options = parser.parse_args(argv)
    model = load_tagger(options.tagger, options.models, device="cpu", threads=1)
    found = found_in(model, options.count)
    print(f"{options.count} drawn pictures, threshold {model.thresholds[GENERAL]:g}")
    print(f"{'tags':<18}{'precision':>10}{'recall':>9}")
    for group in GROUPS:
        precision, recall = measures(found, group)
        print(f"{group:<18}{precision:>10.1%}{recall:>9.1%}")
    reached = min(measures(found)) >= GOAL
    print(f"goal: {GOAL:.0%} of both, {'reached' if reached else 'missed'}")
    return 0 if reached else 1
