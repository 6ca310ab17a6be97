"""The loaded model as every room below the hosts sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from extensions_lib.models.families import Family, Structure
from extensions_lib.models.names import Place, Tree, component_of, places

Prediction = Literal["epsilon", "v_prediction"]

# The last value of a schedule without a signal, as the WebUIs set it: a true zero has no sigma.
_ZERO_SNR_LAST = 4.8973451890853435e-08


@dataclass
class NoiseSchedule:
    """How noisy each training step is, and what the UNet answers with."""

    alphas_cumprod: Tensor
    """[steps], float32: share of the signal's variance left at each step, falling."""
    prediction: Prediction = "epsilon"

    @classmethod
    def scaled_linear(
        cls,
        prediction: Prediction = "epsilon",
        *,
        start: float = 0.00085,
        end: float = 0.012,
        steps: int = 1000,
        zero_terminal_snr: bool = False,
    ) -> NoiseSchedule:
        """The schedule of Stable Diffusion: betas are the squares of evenly spaced numbers.

        Computed in float64 and rounded once to float32, as the original code does.
        """
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if zero_terminal_snr:
            alphas_cumprod = _without_terminal_signal(alphas_cumprod)
        return cls(alphas_cumprod.to(torch.float32), prediction)

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> Tensor:
        """[steps], float32, rising: noise over signal of each step."""
        alphas = self.alphas_cumprod.to(torch.float64)
        return ((1 - alphas) / alphas).sqrt().to(torch.float32)


def _without_terminal_signal(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale the schedule so that its last step is all noise.

    Algorithm 1 of Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are
    Flawed" (arXiv 2305.08891).
    """
    root = alphas_cumprod.sqrt()
    shifted = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    rescaled = shifted**2
    rescaled[-1] = _ZERO_SNR_LAST
    return rescaled


@dataclass
class LoadedModel:
    """A model in memory, whichever host put it there.

    `unet`, `text_encoders` (in the order of `structure.text_components`) and `vae` are the
    modules at the roots of `tree`: for "ldm" the UNetModel, the CLIP or OpenCLIP model and the
    AutoencoderKL of the original code; for "diffusers" and "forge" the text encoders are
    transformers models.

    Conventions of the text encoders, for whoever encodes prompts: SD1 takes the last hidden
    state after the final norm. SD2 runs all but `TextShape.unused_layers` layers and then the
    final norm. SDXL takes the hidden state before the last layer of both encoders without the
    final norm, side by side, and as pooled vector the second encoder's last state after the
    final norm at the first end token, times its text projection.
    """

    name: str
    path: Path | None
    hash: str
    """sha256 of the file in hex; empty where there is no file."""
    structure: Structure
    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    vae: nn.Module
    tree: Tree
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype
    vae_scale: float = 0.18215
    """Latents are the VAE's latents times this."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The metadata in the checkpoint's header."""
    notes: tuple[str, ...] = ()
    """What loading found odd: sentences for the user."""

    @property
    def family(self) -> Family:
        return self.structure.family

    @cached_property
    def layers(self) -> Mapping[str, Place]:
        """Canonical name to place in this model's tree."""
        return places(self.structure, self.tree)

    def component(self, name: str) -> nn.Module:
        """The module of a component: "unet", "te1", "te2" or "vae".

        Raises:
            KeyError: this model has no such component.
        """
        if name == "unet":
            return self.unet
        if name == "vae":
            return self.vae
        texts = dict(zip(self.structure.text_components, self.text_encoders, strict=True))
        return texts[name]

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]:
        """The module of a layer, the name of its weight there, and its rows in a fused weight.

        A module that a host wrapped in another (as its `wrapped`) is found inside. A layer whose
        `layers[canonical].transposed` is set stores the transpose of its weight.

        Raises:
            KeyError: this model has no such layer.
        """
        place = self.layers[canonical]
        module = self.component(component_of(canonical))
        for part in place.within.split(".") if place.within else ():
            module = _child(module, part, canonical)
        while place.parameter not in module._parameters and "wrapped" in module._modules:
            module = module.get_submodule("wrapped")
        if place.parameter not in module._parameters:
            raise KeyError(f"{canonical}: no parameter {place.parameter!r} at {place.path!r}")
        return module, place.parameter, place.rows


def _child(module: nn.Module, part: str, canonical: str) -> nn.Module:
    while part not in module._modules and "wrapped" in module._modules:
        module = module.get_submodule("wrapped")
    child = module._modules.get(part)
    if child is None:
        raise KeyError(f"{canonical}: the {type(module).__name__} has no module {part!r}")
    return child
