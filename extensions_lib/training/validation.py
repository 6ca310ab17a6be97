"""The loss on the same pictures with the same noise each time: it shows which step is best."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from extensions_lib.training.loop import Loop, seeded
from extensions_lib.training.step import Data

_SEED = 7919


@dataclass
class Validation:
    """Measures `loop`'s recipe on the first batches of `data`, `most` at most."""

    loop: Loop
    data: Data
    most: int

    def __len__(self) -> int:
        """Batches that are measured on."""
        return min(self.most, len(self.data))

    @torch.no_grad()
    def measure(self, number: int) -> float:
        """The mean loss of batch `number`; the recipe is put in."""
        generator = seeded(_SEED, number, self.loop.device)
        batch = self.data.batch(0, number, generator)
        with self.loop.recipe.without_dropout(), self.loop.computing():
            return float(self.loop.recipe.losses(batch, generator).float().mean())
