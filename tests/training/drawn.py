"""Sets of drawn pictures, and a model that counts what it is asked to encode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from extensions_lib.datasets.folders import subsets_of
from extensions_lib.datasets.options import DataOptions
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.models.trainable import Conditioning
from extensions_lib.training.data import Run, TrainingData, read_training_data
from extensions_lib.training.encoding import TextOptions
from extensions_lib.training.step import Batch
from tests.training.small import trainable

SMALL = {"resolution": "64", "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 32}
SIZES = ((64, 64), (96, 48), (48, 96), (64, 64), (100, 50))


def draw(path: Path, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """A picture of blurred noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def drawn_set(root: Path, count: int = 5, folder: str = "2_sls thing") -> Path:
    """Pictures of several shapes; every third has no caption."""
    for number in range(count):
        path = draw(root / folder / f"{number}.png", SIZES[number % len(SIZES)], number)
        if number % 3 != 2:
            path.with_suffix(".txt").write_text(f"sls, number {number}, blue, large")
    return root


def data_of(root: Path, run: Run | None = None, **options: object) -> TrainingData:
    """The training data of a folder at 64 pixels."""
    settings = DataOptions(**{"train_data_dir": str(root), **SMALL, **options})  # type: ignore[arg-type]
    return read_training_data(subsets_of(settings), settings, run or Run(steps=10), TextOptions())


def batches(data: TrainingData, epochs: int = 2) -> list[Batch]:
    """All batches of some epochs, each from a generator of its own."""
    return [
        data.batch(epoch, index, torch.Generator().manual_seed(100 * epoch + index))
        for epoch in range(epochs)
        for index in range(len(data))
    ]


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same to the bit."""
    pairs = [(one.latents, other.latents), (one.mask, other.mask)]
    pairs.append((one.regularisation, other.regularisation))
    for each in (one.conditioning, other.conditioning):
        assert (each is None) == (one.conditioning is None)
    if one.conditioning is not None and other.conditioning is not None:
        pairs.append((one.conditioning.states, other.conditioning.states))
    equal = all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
                for a, b in pairs)  # fmt: skip
    return equal and (one.prompts, one.names, one.sizes) == (
        other.prompts,
        other.names,
        other.sizes,
    )


class Counting(StandaloneTrainable):
    """Counts pictures and prompts."""

    pictures = 0
    prompts = 0

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.pictures += len(pixels)
        return super().encode_pictures(pixels)

    def encode_text(
        self, prompts: Sequence[str], *, clip_skip: int = 1, chunks: int = 1
    ) -> Conditioning:
        self.prompts += len(prompts)
        return super().encode_text(prompts, clip_skip=clip_skip, chunks=chunks)


def counting(folder: Path, family: str = "SD1") -> Counting:
    """A small model that counts."""
    return Counting(trainable(folder, family).loaded)
