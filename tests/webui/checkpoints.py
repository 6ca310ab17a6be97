"""Models for the WebUIs under test: random ones, of the smallest size that each takes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from extensions_lib.models import Family, Structure, UNetShape, canonical_layers, flat
from extensions_lib.models.families import CLIP_L
from tests.tiny import random_tensors

# Forge tells a family by these widths alone and has the text encoder's and VAE's sizes fixed.
SMALL = Structure(
    Family.SD1,
    UNetShape(
        in_channels=4,
        model_channels=320,
        channel_mult=(1, 1),
        num_res_blocks=(1, 1),
        transformer_depth=(1, 1),
        middle_depth=1,
        context_dim=768,
        heads=8,
        head_dim=None,
        linear_projection=False,
        adm_in_channels=None,
    ),
    (CLIP_L,),
)


def small_checkpoint(path: Path, seed: int = 0) -> None:
    """Writes a random SD1 checkpoint of 250 million parameters that Forge loads, in float16."""
    tensors = random_tensors(SMALL, seed=seed)
    save_file({key: tensor.half() for key, tensor in tensors.items()}, path)


def small_networks(folder: Path) -> None:
    """Writes random LoRA, with names and kinds as those that ship for the demo checkpoint."""
    folder.mkdir(parents=True)
    random_lora(folder / "star.safetensors", seed=1, kinds=("linear", "conv"))
    random_lora(folder / "heart.safetensors", seed=2, kinds=("linear", "conv"))
    random_lora(folder / "heart-linear.safetensors", seed=3, kinds=("linear",))


def random_lora(path: Path, seed: int, kinds: tuple[str, ...], rank: int = 4) -> None:
    """A LoRA on the text encoder and the UNet whose effect is plain to see."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for canonical, layer in canonical_layers(SMALL).items():
        if layer.kind not in kinds or canonical.startswith("vae"):
            continue
        out, *rest = layer.shape
        down = torch.randn(rank, *rest, generator=generator)
        scale = 0.3 / down[0].numel() ** 0.5 / rank
        up = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=generator) * scale
        found[f"{flat(canonical)}.lora_down.weight"] = down
        found[f"{flat(canonical)}.lora_up.weight"] = up
        found[f"{flat(canonical)}.alpha"] = torch.tensor(float(rank))
    save_file(found, path, {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)})
