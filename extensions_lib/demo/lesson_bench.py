"""`run.py bench lesson`: trains the demo checkpoint a new shape by the preset, and looks at it.

The shape is one that the checkpoint has never seen. It prints how long that took, how often a
held-out prompt comes out right before and after, and writes a grid: above before, below after.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from extensions_lib.demo import bench, world
from extensions_lib.demo.lesson_set import SHAPE, draw_lesson
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.host import ROOT
from extensions_lib.hosts.standalone.place import StandalonePlace
from extensions_lib.options import checked
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.presets import DEMO, presets_for
from extensions_lib.training.runs import Runs

NAME = "lesson"
_SHOWN = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, judges and prints."""
    parser = argparse.ArgumentParser(prog="run.py bench lesson", description=__doc__)
    parser.add_argument("--pictures", type=int, default=64, help="held-out prompts")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("lesson.png"))
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "models" / "demo", root / "models" / "demo")
        host = StandaloneHost(root=root, threads=options.threads)
        seconds = train(host, root)
        print(f"trained in {seconds:.0f} s")
        tell(host, options.pictures, options.out)
    return 0


def train(host: StandaloneHost, root: Path) -> float:
    """Trains the lesson; the seconds from the order to the file."""
    made = draw_lesson(root / "set")
    told = {
        **presets_for(DEMO)[0].options,
        "train_data_dir": str(made.train),
        "reg_data_dir": str(made.known),
        "output_name": NAME,
    }
    started = time.monotonic()
    run = Runs(StandalonePlace(host), root / "outputs").start(checked(TrainingOptions, told))
    run.join()
    if run.status().state != "done":
        raise SystemExit(run.status().message)
    return time.monotonic() - started


def tell(host: StandaloneHost, count: int, out: Path) -> None:
    """Prints the shares of prompts that come out right, and writes the grid."""
    new = bench.scenes(count, 4321, shapes=(SHAPE,))
    known = bench.scenes(count, 4322)
    tag = f"{{}} <lora:{NAME}:1>"
    before, after = bench.generated(host, new), bench.generated(host, new, tag)
    kept = bench.generated(host, known, tag)
    for what, scenes, pictures in (
        (f"{SHAPE}, before", new, before),
        (f"{SHAPE}, after", new, after),
        ("known shapes, after", known, kept),
    ):
        found = [bench.hits(s, p) for s, p in zip(scenes, pictures, strict=True)]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in bench.shares(found).items())
        print(f"{what}: {shares}")
    side = world.SIZE
    grid = Image.new("RGB", (_SHOWN * (side + 4) - 4, 2 * (side + 4) - 4), "white")
    for row, pictures in enumerate((before, after)):
        for column, picture in enumerate(pictures[:_SHOWN]):
            grid.paste(picture, (column * (side + 4), row * (side + 4)))
    grid.save(out)
    print(out)


if __name__ == "__main__":
    sys.exit(main())
