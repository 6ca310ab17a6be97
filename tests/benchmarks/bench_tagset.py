"""How long the editor waits for a set of pictures with captions.

Makes a set (small PNG files, captions of 30 tags from 3,000) and measures, warm and as the median
of several rounds, what the editor does: loading the set, a page, the frequency table, filters, the
preview of an edit, the edit, undo; and thumbnails of one page of large JPEG pictures, new and kept.
Beside each disk-bound figure stands the bound: plain reading or replacing of the same files.

    python run.py bench tagset [--pictures N] [--rounds N]
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from extensions_lib.datasets import edits
from extensions_lib.datasets.at_once import threads_for
from extensions_lib.datasets.pictures import find
from extensions_lib.datasets.rules import Rule, Rules
from extensions_lib.datasets.survey import survey
from extensions_lib.datasets.tag_set import TagSet
from extensions_lib.datasets.thumbnails import Thumbnails

FILTERS = ("t1 AND NOT t2", "(t1 OR t2*), count>3", 'NOT (t1, t3) OR "*99" OR untagged')


def make(folder: Path, count: int) -> None:
    """Tags by Zipf's law, so that a few are in most captions, as in real sets."""
    from PIL import Image

    draw = random.Random(0)
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    picture = (folder / "0.png").read_bytes()
    tags = [f"t{number}" for number in range(3000)]
    weights = [1 / (number + 1) for number in range(3000)]
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture)
        chosen = dict.fromkeys(draw.choices(tags, weights, k=30))
        (folder / f"{number}.txt").write_text(", ".join(chosen))


def make_large(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (96, 64, 3), dtype=np.uint8))
        small.resize((1536, 2304)).save(folder / f"{number}.jpg", quality=90)


Times = tuple[float, float]  # seconds by the clock, seconds of this process on a core


def timed(rounds: int, *works: Callable[[], object]) -> list[Times]:
    """The median of each, done one after the other in every round."""
    times: list[list[Times]] = [[] for _ in works]
    for _ in range(rounds):
        for work, kept in zip(works, times, strict=True):
            clock, core = time.perf_counter(), time.process_time()
            work()
            kept.append((time.perf_counter() - clock, time.process_time() - core))
    return [(median(c for c, _ in kept), median(p for _, p in kept)) for kept in times]


def once(rounds: int, work: Callable[[], object]) -> Times:
    [took] = timed(rounds, work)
    return took


def say(what: str, took: Times, bound: Times | None = None, wanted: float | None = None) -> None:
    said = f"{what:<44}{1000 * took[0]:9.1f} ms{1000 * took[1]:9.1f} ms on a core"
    said += f"   {took[0] / bound[0]:5.2f} × bound" if bound else " " * 16
    print(said + (f"   (wanted: {1000 * wanted:.0f} ms)" if wanted else ""))


def read_all(folder: Path) -> None:
    for name in sorted(os.listdir(folder)):
        if name.endswith(".txt"):
            with open(folder / name, "rb") as file:
                file.read()


def replace_all(folder: Path) -> None:
    for name in sorted(os.listdir(folder)):
        if name.endswith(".txt"):
            path, new = folder / name, folder / f"{name}.new"
            new.write_bytes(path.read_bytes())
            os.replace(new, path)


def measure(folder: Path, rounds: int) -> None:
    load, reading = timed(rounds, lambda: TagSet(folder), lambda: read_all(folder))
    say("load the set", load, reading, 1.0)
    photos = TagSet(folder)
    say("a page of 60 pictures", once(rounds, lambda: photos.page(20)), wanted=0.05)
    say("frequency table", once(rounds, photos.frequency))
    for text in FILTERS:
        say(f"filter {text}", once(rounds, partial(photos.filter, text)), wanted=0.05)
    add = edits.add("portrait")
    rules = Rules(
        [
            Rule(tags=("t0", "t1"), add=("Smith",)),
            Rule(tags=("t2*",), match="any", keep=True, drop=("t5",)),
            Rule(add=("group1",), scope="filter", where=("t3 OR t4",)),
        ]
    )
    say("preview of an added tag", once(rounds, lambda: photos.preview(add)))
    say("preview of three rules", once(rounds, lambda: photos.preview(rules.edit())))
    search = edits.replace(r"t(\d)5", r"u\1", "regex")
    say("preview of search and replace", once(rounds, lambda: photos.preview(search)))
    done, undone, replacing = timed(
        rounds, lambda: photos.do(add), photos.undo, lambda: replace_all(folder)
    )
    say("an edit of every caption", done, replacing, 2.0)
    say("undo", undone, replacing, 2.0)
    texts = itertools.count()
    say(
        "edit of one caption",
        once(rounds, lambda: photos.do(edits.write({"7.png": f"typed {next(texts)}"}))),
    )
    say("history", once(rounds, photos.history))
    size = (folder / ".crucible" / "journal.sqlite").stat().st_size
    print(f"{'the journal then has':<44}{size / 1e6:9.1f} MB")


def measure_pictures(folder: Path, cache: Path) -> None:
    paths = find(folder)
    thumbs = Thumbnails(cache)
    made = once(1, lambda: thumbs.many(paths))
    kept = once(3, lambda: thumbs.many(paths))
    say(f"{len(paths)} thumbnails of 1536 × 2304, new", made)
    say(f"{len(paths)} thumbnails of 1536 × 2304, kept", kept)
    say(f"survey of {len(paths)} such pictures", once(1, lambda: survey(paths)))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench tagset", description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place, "small"), Path(place, "large")
        small.mkdir()
        large.mkdir()
        make(small, options.pictures)
        make_large(large, 60)
        print(f"{options.pictures} pictures, {os.cpu_count()} cores, {threads_for()} threads")
        measure(small, options.rounds)
        measure_pictures(large, Path(place, "cache"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
