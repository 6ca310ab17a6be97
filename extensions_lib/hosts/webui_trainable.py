"""A WebUI's checkpoint as training uses it: what AUTOMATIC1111's and Forge's have in common.

Prompts go through the WebUI's own chunks, embeddings, emphasis and text encoders, so that training
sees what a picture of the same prompt would see.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import CrucibleError, NetworkProblem
from extensions_lib.files.embeddings import Embedding
from extensions_lib.hosts.webui_embeddings import databases_of
from extensions_lib.models.families import Family
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.models.trainable import Conditioning, Sizes, own_sizes

SIZE_WIDTH = 256  # numbers that SDXL's UNet is told for each number of a picture's sizes


class WebUITrainable(ABC):
    """The checkpoint of a WebUI, while a turn of training has it."""

    def __init__(self, sd_model: Any, loaded: LoadedModel) -> None:
        if loaded.structure.unet.in_channels != 4:
            raise NetworkProblem(
                f"{loaded.name}: is an inpainting checkpoint; load one that makes whole pictures "
                "to train on."
            )
        self.sd_model, self.loaded = sd_model, loaded

    def encode_text(
        self, prompts: Sequence[str], *, clip_skip: int = 1, chunks: int = 1
    ) -> Conditioning:
        """As `Trainable.encode_text`. Raises CrucibleError where the encoder has no such layer."""
        layers = self.loaded.structure.texts[0].layers
        if self.loaded.family is Family.SD1 and not 1 <= clip_skip <= layers:
            raise CrucibleError(
                f"Clip skip {clip_skip}: this model's text encoder has {layers} layers; choose 1 "
                f"to {layers}."
            )
        with self._ready_to_encode(clip_skip):
            return Conditioning.joined([self._encoded(prompt, chunks) for prompt in prompts])

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Trainable.encode_pictures`. Raises CrucibleError where the VAE overflows."""
        return posterior(self.loaded.vae, pixels, self.loaded.vae_scale)

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[Sizes] | None = None,
    ) -> Tensor:
        """As `Trainable.predict`."""
        vector = None
        if self.loaded.family is Family.SDXL:
            assert conditioning.pooled is not None
            told = embedded_sizes(sizes or own_sizes(noisy)).to(conditioning.pooled.device)
            vector = torch.cat([conditioning.pooled, told], 1)
        answer = self._predicted(noisy, timesteps, conditioning.states, vector)
        return answer.float()

    @contextmanager
    def embedding(self, name: str, parts: Mapping[str, Tensor]) -> Iterator[None]:
        """As `Trainable.embedding`."""
        embedding = Embedding(name, parts)
        with ExitStack() as stack:
            for database in databases_of(self.sd_model):
                stack.enter_context(database.lent(name, embedding))
            yield

    def _encoded(self, prompt: str, chunks: int) -> Conditioning:
        """One prompt alone, as the WebUI encodes one: [1, 77 · chunks, width]."""
        states, pooled = [], None
        for engine in self._engines():
            pieces = engine.process_texts([prompt])[0][0][:chunks]
            encoded = [self._encoded_chunk(engine, piece) for piece in pieces]
            summary = getattr(encoded[0], "pooled", None)
            pooled = pooled if summary is None else summary.float()
            states.append(torch.hstack(encoded).float())
        return Conditioning(torch.cat(states, 2), pooled)

    def _encoded_chunk(self, engine: Any, chunk: Any) -> Tensor:
        self._fixes_of(engine).fixes = [chunk.fixes]
        encoded: Tensor = engine.process_tokens([chunk.tokens], [chunk.multipliers])
        return encoded

    @abstractmethod
    def _ready_to_encode(self, clip_skip: int) -> AbstractContextManager[None]:
        """The WebUI's settings as for a picture with this clip skip."""

    @abstractmethod
    def _engines(self) -> Sequence[Any]:
        """The WebUI's objects that chunk and encode, in the order of the components."""

    @abstractmethod
    def _fixes_of(self, engine: Any) -> Any:
        """The object whose `fixes` say where embeddings go in the chunk that is encoded next."""

    @abstractmethod
    def _predicted(
        self, noisy: Tensor, timesteps: Tensor, states: Tensor, vector: Tensor | None
    ) -> Tensor:
        """The UNet's answer; `vector` is SDXL's, of pooled text and sizes."""


def posterior(vae: Any, pixels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As `Trainable.encode_pictures`, by an autoencoder of the original code."""
    weight = next(vae.parameters())
    with torch.no_grad():
        moments = vae.encoder(pixels.to(weight.device, weight.dtype))
        if vae.quant_conv is not None:
            moments = vae.quant_conv(moments)
    mean, log_variance = moments.float().chunk(2, dim=1)
    deviation = (log_variance.clamp(-30, 20) / 2).exp()
    if not bool(torch.isfinite(mean).all() & torch.isfinite(deviation).all()):
        raise CrucibleError(
            f"the VAE gives no numbers for a picture in {str(weight.dtype).removeprefix('torch.')};"
            " start the WebUI with the VAE in 32 bits (--no-half-vae, or --vae-in-fp32 in Forge)."
        )
    return mean * scale, deviation * scale


def embedded_sizes(sizes: Sequence[Sizes]) -> Tensor:
    """SDXL's sizes as its UNet is told them, [B, 6 · 256]: of each number cosines, then sines.

    As in Vaswani et al. 2017, with rates from 1 to 1/10000.
    """
    half = SIZE_WIDTH // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = torch.tensor(list(sizes), dtype=torch.float32)[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1).flatten(1)


@contextmanager
def frozen(roots: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, no parameter of theirs asks for gradients; then each does as before."""
    asking = [each for root in roots for each in root.parameters() if each.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
