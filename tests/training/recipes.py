"""What every recipe's test does: a few steps on a small model, and a look at what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.training.loop import Loop, LoopOptions
from extensions_lib.training.state import load_state, save_state
from extensions_lib.training.step import Batch, Recipe
from tests.patching.standin import Bits

Make = Callable[[StandaloneTrainable], Any]


class Same:
    """One batch for ever."""

    def __init__(self, batch: Batch) -> None:
        self.one = batch

    def __len__(self) -> int:
        return 1

    def batch(self, epoch: int, index: int, generator: torch.Generator) -> Batch:
        return self.one


def two(side: int = 8, **other: Any) -> Batch:
    """Two latents of no meaning."""
    latents = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(2))
    return replace(Batch(latents, ("a thing", "another"), ("0.png", "1.png")), **other)


@dataclass
class Trained:
    """A recipe after its steps, the model clean again; loss on fixed noise before and after."""

    recipe: Any
    loop: Loop
    before: float
    after: float


def fixed_loss(recipe: Recipe, batch: Batch) -> float:
    """The mean loss over a few fixed noises, without dropout."""
    with torch.no_grad(), recipe.without_dropout():
        losses = [
            recipe.losses(batch, torch.Generator().manual_seed(seed)).mean() for seed in range(6)
        ]
    return float(torch.stack(losses).mean())


def trained(
    model: StandaloneTrainable,
    make: Make,
    steps: int,
    batch: Batch,
    *,
    rate: float,
    resume: Path | None = None,
) -> Trained:
    """Trains; checks that the model is the same objects with the same bits afterwards."""
    roots = (model.loaded.unet, *model.loaded.text_encoders, model.loaded.vae)
    kept = [Bits(each) for each in roots]
    recipe = make(model)
    options = LoopOptions(learning_rate=rate, max_train_steps=100, lr_scheduler="constant")
    loop = Loop(recipe, Same(batch), options)
    if resume is not None:
        loop.restore(load_state(resume)[0])
    recipe.put_in()
    try:
        before = fixed_loss(recipe, batch)
        while loop.done < steps:
            assert loop.step().norm > 0
        after = fixed_loss(recipe, batch)
    finally:
        recipe.take_out()
    assert all(each.untouched() for each in kept)
    for root in roots:
        assert not any("forward" in vars(m) or m._forward_pre_hooks for m in root.modules())
        assert not any(p.requires_grad or p.grad is not None for p in root.parameters())
    return Trained(recipe, loop, before, after)


def resumes(
    fresh: Callable[[], StandaloneTrainable], make: Make, batch: Batch, folder: Path, rate: float
) -> None:
    """Four steps are the same as two, a state on disk, and two more: to the bit."""
    whole = trained(fresh(), make, 4, batch, rate=rate)
    half = trained(fresh(), make, 2, batch, rate=rate)
    path = save_state(folder, half.loop.state(), {}, keep=1)
    again = trained(fresh(), make, 4, batch, rate=rate, resume=path)
    expected, found = whole.recipe.tensors(), again.recipe.tensors()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    start = make(fresh()).tensors()
    assert any(not torch.equal(expected[name], start[name]) for name in expected)
