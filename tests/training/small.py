"""A small model and pictures to train on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.training.step import Batch
from tests.tiny import tiny_checkpoint


@cache
def checkpoint(folder: Path, family: str) -> Path:
    return tiny_checkpoint(folder / f"{family}.safetensors", family)


def trainable(folder: Path, family: str = "SD1") -> StandaloneTrainable:
    """A model of its own each time, in fp32."""
    loaded = load_checkpoint(checkpoint(folder, family), device="cpu", dtype=torch.float32)
    return StandaloneTrainable(loaded)


class Few:
    """Six latents of no meaning with prompts, in an order that changes with the epoch."""

    def __init__(self, batch: int = 2, side: int = 16) -> None:
        self.size = batch
        drawn = torch.Generator().manual_seed(11)
        self.latents = torch.randn(6, 4, side, side, generator=drawn)
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 6 // self.size

    def batch(self, epoch: int, index: int, generator: torch.Generator) -> Batch:
        self.asked.append((epoch, index))
        order = torch.randperm(6, generator=torch.Generator().manual_seed(epoch)).tolist()
        chosen = order[index * self.size : (index + 1) * self.size]
        noise = torch.randn(self.latents[chosen].shape, generator=generator)
        return Batch(
            self.latents[chosen] + 0.01 * noise,
            tuple(f"a thing, number {number}" for number in chosen),
            tuple(f"{number}.png" for number in chosen),
        )
