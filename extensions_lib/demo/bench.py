"""`run.py bench demo`: how often the demo checkpoint draws what the prompt says.

The prompts and seeds are fixed, the pictures are made as any user's are, with the default sampler,
and are read by `judge`, which first has to read drawn pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from extensions_lib.demo import judge, world
from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.standalone import StandaloneHost

ASPECTS = ("background", "colour", "shape", "size", "position")
GOALS = {"background": 0.95, "colour": 0.90, "shape": 0.85, "position": 0.70}
Hits = dict[str, int]


def scenes(
    count: int, seed: int, shapes: Sequence[str] = world.SHAPES, styles: Sequence[str] = ("flat",)
) -> list[world.Scene]:
    """Scenes of one figure, each shape as often as the others."""
    rng = random.Random(seed)
    made = [world.random_scene(rng, shapes, styles, two=0.0) for _ in range(count)]
    return [
        replace(s, figures=(replace(s.figures[0], shape=shapes[i % len(shapes)]),))
        for i, s in enumerate(made)
    ]


def hits(scene: world.Scene, picture: Image.Image) -> Hits:
    """1 for each aspect of the scene that the picture shows, else 0."""
    figure, reading = scene.figures[0], judge.read(picture)
    wanted = {"background": scene.background, "colour": figure.colour, "shape": figure.shape,
              "size": figure.size, "position": figure.position}  # fmt: skip
    return {name: int(reading is not None and getattr(reading, name) == wanted[name])
            for name in ASPECTS}  # fmt: skip


def shares(found: Sequence[Hits]) -> dict[str, float]:
    """The share of pictures that are right, by aspect."""
    return {name: sum(each[name] for each in found) / len(found) for name in ASPECTS}


def generated(
    host: StandaloneHost, asked: Sequence[world.Scene], prompt: str = "{}", **how: float
) -> list[Image.Image]:
    """One picture for each scene, seed = its number; `prompt` frames the caption.

    `how` are options of the request; the CFG scale is the checkpoint's own where none is given.
    """
    how.setdefault("cfg", host.default_cfg())
    pictures = []
    for index, scene in enumerate(asked):
        request = GenerationRequest(prompt.format(world.caption(scene)), seed=index, **how)  # type: ignore[arg-type]
        pictures += host.generate(request).images
    return pictures


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 16) -> Image.Image:
    """The pictures side by side."""
    side = pictures[0].width
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * side, i // columns * side))
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="run.py bench demo")
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint of the same world")
    parser.add_argument("--count", type=int, default=256, help="prompts (256)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, help="the checkpoint's own if not given")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--sheet", type=Path, help="save all pictures on one sheet")
    parser.add_argument("--json", type=Path, help="save the figures")
    options = parser.parse_args(argv)
    asked = scenes(options.count, seed=7)
    drawn = shares([hits(scene, world.draw(scene)) for scene in asked])
    host = StandaloneHost(options.checkpoint, threads=options.threads)
    cfg = host.default_cfg() if options.cfg is None else options.cfg
    began = time.monotonic()
    pictures = generated(host, asked, steps=options.steps, cfg=cfg)
    seconds = time.monotonic() - began
    found = [hits(scene, picture) for scene, picture in zip(asked, pictures, strict=True)]
    made = shares(found)
    print(f"{options.count} prompts, {options.steps} steps, CFG {cfg:g}, seeds 0 to "
          f"{options.count - 1}: {seconds / options.count:.2f} s a picture")  # fmt: skip
    print(f"{'aspect':<12}{'right':>8}{'goal':>8}{'judge on drawn pictures':>26}")
    for name in ASPECTS:
        goal = f"{GOALS[name]:.0%}" if name in GOALS else "-"
        print(f"{name:<12}{made[name]:>8.1%}{goal:>8}{drawn[name]:>26.1%}")
    by_shape = {s: shares([h for h, a in zip(found, asked, strict=True)
                           if a.figures[0].shape == s])["shape"] for s in world.SHAPES}  # fmt: skip
    print("shape by kind: " + ", ".join(f"{name} {share:.0%}" for name, share in by_shape.items()))
    if options.sheet:
        contact_sheet(pictures).save(options.sheet)
    if options.json:
        options.json.write_text(json.dumps(made))
    missed = [name for name, goal in GOALS.items() if made[name] < goal]
    print(f"missed: {', '.join(missed)}" if missed else "all goals reached")
    return 1 if missed else 0
