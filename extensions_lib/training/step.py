"""What one step learns from, and what it learns: the parts that a loop is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from extensions_lib.models.trainable import Conditioning, Sizes, Trainable
from extensions_lib.training import objective
from extensions_lib.training.objective import ObjectiveOptions


@dataclass(frozen=True)
class Batch:
    """Pictures of one size with their prompts.

    latents [B, 4, h, w] fp32, times the VAE's scale. mask [B, 1, H, W] from 0 to 1 weighs places.
    regularisation [B] bool. `conditioning` where the prompts are encoded already. `names` are
    what to call the pictures. control [B, 3, H, W] from −1 to 1: condition pictures (LLLite).
    """

    latents: Tensor
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    mask: Tensor | None = None
    regularisation: Tensor | None = None
    sizes: tuple[Sizes, ...] | None = None
    conditioning: Conditioning | None = None
    control: Tensor | None = None


class Data(Protocol):
    """The pictures of a run, in an order that follows from its seed."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def batch(self, epoch: int, index: int, generator: torch.Generator) -> Batch:
        """Batch `index` of epoch `epoch`, both from 0; `generator` for what is drawn in it."""


class Recipe(Protocol):
    """A kind of thing that is trained."""

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """torch's parameter groups: "params", "lr", and a "name" for people."""

    def tensors(self) -> dict[str, Tensor]:
        """All that is trained, by name; the very tensors."""

    def put_in(self) -> None:
        """From now on the model answers as trained."""

    def take_out(self) -> None:
        """The model answers as it was."""

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """[B]: the loss of each picture, with gradients."""

    def after_step(self) -> None:
        """What is done to the tensors after each step of the optimizer."""

    def without_dropout(self) -> AbstractContextManager[None]:
        """While it lasts, losses leave nothing out at random."""

    def save(
        self,
        path: Path,
        metadata: Mapping[str, str],
        dtype: torch.dtype,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes what is learnt, atomically; `values`: others than the present ones, by name."""


def diffusion_losses(
    model: Trainable,
    batch: Batch,
    conditioning: Conditioning,
    options: ObjectiveOptions,
    generator: torch.Generator,
) -> Tensor:
    """[B]: how far the model is off in telling the noise of noisy latents."""
    schedule = model.loaded.schedule
    latents = batch.latents.to(model.loaded.device)
    noise = objective.draw_noise(latents, options, generator)
    timesteps = objective.draw_timesteps(len(latents), options, generator).to(latents.device)
    seen = objective.disturbed(noise, options, generator)
    noisy = objective.noisy(latents, seen, timesteps, schedule.alphas_cumprod)
    answer = model.predict(noisy, timesteps, conditioning, batch.sizes)
    wanted = objective.target(latents, noise, timesteps, schedule)
    return objective.loss_of(
        answer,
        wanted,
        timesteps,
        schedule,
        options,
        mask=batch.mask,
        regularisation=batch.regularisation,
    )
