"""A small tagger in WD's contract, whose scores follow a picture's colours, and folders for it."""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from extensions_lib.datasets.pictures import open_picture
from extensions_lib.tagging.pipeline import plan, tag
from extensions_lib.tagging.run import Progress, Report, Run
from extensions_lib.tagging.scores import ModelKey, ScoreStore, sparse
from extensions_lib.tagging.selection import Selection, select, text
from extensions_lib.tagging.taggers import Tagger
from extensions_lib.tagging.writer import Output

NAMES = (
    *(("safe", 9), ("explicit", 9)),
    *((f"tag_{i}", 0) for i in range(24)),
    *((f"somebody_{i}_(show)", 4) for i in range(6)),
)
SIZE = 32


def write_tagger(folder: Path, batch: int | None = None, seed: int = 0) -> Path:
    """A tagger's folder; `batch` fixes how many pictures the file takes at once."""
    import torch
    from torch import nn

    class Colours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4 * 4 * 3, len(NAMES))
            nn.init.normal_(self.head.weight, 0, 1.0)
            nn.init.normal_(self.head.bias, 0, 1.0)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            parts = (pixels / 127.5 - 1).permute(0, 3, 1, 2)
            return torch.sigmoid(self.head(nn.functional.avg_pool2d(parts, SIZE // 4).flatten(1)))

    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    axes = None if batch else {"input": {0: "batch"}, "output": {0: "batch"}}
    torch.onnx.export(
        Colours().eval(),
        (torch.zeros(batch or 1, SIZE, SIZE, 3),),
        str(folder / "model.onnx"),
        input_names=["input"],
        output_names=["output"],
        dynamic_axes=axes,
        dynamo=False,
    )
    with open(folder / "selected_tags.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("tag_id", "name", "category", "count"))
        rows.writerows((i, name, category, 1) for i, (name, category) in enumerate(NAMES))
    return folder


def write_pictures(folder: Path, count: int, side: int = 48) -> list[Path]:
    """Pictures of coloured patches as PNG, JPEG and WEBP, every one another."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        draw = np.random.default_rng(number)
        patches = draw.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(patches).resize((side, side + number % 7), Image.Resampling.NEAREST)
        path = folder / f"{number:03}.{('png', 'jpg', 'webp')[number % 3]}"
        image.save(path)
        paths.append(path)
    return paths


def captions(folder: Path) -> dict[str, str]:
    """Every caption file below the folder, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().decode()
        for path in sorted(folder.rglob("*.txt"))
        if ".crucible" not in path.parts
    }


def environment() -> dict[str, str]:
    """For programs that tests start: the project importable, one thread."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def run(
    folder: Path,
    *runners: Any,
    selection: Selection | None = None,
    output: Output | None = None,
    options: Run | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    store = ScoreStore(folder / ".crucible")
    output, options = output or Output(), options or Run(decoders=2)
    try:
        planned = plan(folder, output, options, store)
        return tag(
            planned,
            runners,
            selection or Selection(),
            output,
            options,
            store,
            stop=stop,
            on_progress=on_progress,
        )
    finally:
        store.close()


class Counting:
    """A runner that counts what it is asked, and may fail or wait."""

    labels: Sequence[Any] = ()
    thresholds: Mapping[str, float] = MappingProxyType({})
    least = None

    def __init__(self, act: Callable[[], None] = lambda: None, batch: int = 1) -> None:
        self.key = ModelKey("counting", "1")
        self.batch, self.asked, self.act = batch, 0, act

    def prepare(self, image: Any) -> Any:
        return image.getpixel((0, 0))

    def run(self, prepared: Sequence[Any], stop: Callable[[], bool]) -> list:
        self.act()
        self.asked += len(prepared)
        return [f"a picture of {pixel}" for pixel in prepared]


def expected(tagger: Tagger, paths: Sequence[Path], selection: Selection | None = None) -> dict:
    selection = selection or Selection()
    made = {}
    for path in paths:
        [values] = tagger.score(tagger.prepare(open_picture(path))[None])
        kept = sparse(values)
        chosen = select(tagger.labels, kept, selection, thresholds=tagger.thresholds)
        made[path.with_suffix(".txt").name] = text(chosen, selection)
    return made
