"""What training asks of a loaded model besides its layers: to encode and to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from extensions_lib.models.loaded import LoadedModel

# SDXL's sizes of a picture: original height and width, crop top and left, target height and width.
Sizes = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, as the UNet takes them.

    states [B, tokens, width]; pooled [B, width] where the family has a pooled vector (SDXL).
    """

    states: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    @classmethod
    def joined(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """One batch of several; the shorter ones drawn out by their last token, as WebUI does."""
        length = max(part.states.shape[1] for part in parts)
        states = [
            torch.cat([s, s[:, -1:].expand(-1, length - s.shape[1], -1)], 1)
            for s in (part.states for part in parts)
        ]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat(states), torch.cat(pooled) if pooled else None)

    def rows(self, start: int, stop: int) -> Conditioning:
        """Some of the batch."""
        pooled = None if self.pooled is None else self.pooled[start:stop]
        return Conditioning(self.states[start:stop], pooled)

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on another device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return Conditioning(self.states.to(device), pooled)

    def detach(self) -> Conditioning:
        """The same without its history."""
        pooled = None if self.pooled is None else self.pooled.detach()
        return Conditioning(self.states.detach(), pooled)


class Trainable(Protocol):
    """A loaded model as training uses it: every call differentiable where its input is.

    A host makes one. Networks in training are on the modules already when it is called.
    """

    @property
    def loaded(self) -> LoadedModel: ...

    def encode_text(
        self, prompts: Sequence[str], *, clip_skip: int = 1, chunks: int = 1
    ) -> Conditioning:
        """What generation makes of the same prompts, in fp32; at most `chunks` times 75 tokens."""

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels [B, 3, H, W] from −1 to 1 -> mean and deviation [B, 4, H/8, W/8] of the latents.

        In fp32, times the VAE's scale already; no gradients.
        """

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[Sizes] | None = None,
    ) -> Tensor:
        """The UNet's answer [B, 4, h, w] to noisy [B, 4, h, w] at timesteps [B], in fp32.

        `sizes` for SDXL, one a picture; None: the latents' own size, uncropped.
        """

    def embedding(self, name: str, parts: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """While it lasts, a prompt that says `name` reads these vectors, and gradients reach them.

        parts: "", or "clip_l" and "clip_g" (SDXL) -> [vectors, width] fp32, on the model's device.
        The name is found as that of a file is found, and goes before a file of the same name.
        """


def own_sizes(noisy: Tensor) -> list[Sizes]:
    """SDXL's sizes of uncropped pictures, for latents [B, 4, h, w]."""
    height, width = (8 * side for side in noisy.shape[-2:])
    return [(height, width, 0, 0, height, width)] * len(noisy)
