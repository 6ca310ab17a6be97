"""Small random checkpoints in the real (ldm) layout, for tests of everything above the files.

    from tests.tiny import TINY, tiny_checkpoint
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", "SDXL")

No layer is zero, also not those that training starts at zero, so every adapter has an effect.
The weights are float16 in the file (9 to 14 MB); they need no yaml beside them.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from extensions_lib.models import (
    Family,
    Structure,
    TextShape,
    UNetShape,
    VAEShape,
    canonical_layers,
    checkpoint_shapes,
    places,
)

_VAE = VAEShape(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
_CLIP = TextShape(width=32, layers=2, mlp=64, heads=1, kind="clip")


def _unet(context: int, **other: object) -> UNetShape:
    plan: dict[str, object] = {
        "in_channels": 4,
        "model_channels": 32,
        "channel_mult": (1, 2, 2, 2),
        "num_res_blocks": (2, 2, 2, 2),
        "transformer_depth": (0, 1, 1, 0),
        "middle_depth": 1,
        "context_dim": context,
        "heads": None,
        "head_dim": 64,
        "linear_projection": True,
        "adm_in_channels": None,
    }
    return UNetShape(**(plan | other))  # type: ignore[arg-type]


TINY: dict[str, Structure] = {
    "SD1": Structure(
        Family.SD1,
        _unet(32, heads=8, head_dim=None, linear_projection=False),
        (_CLIP,),
        _VAE,
    ),
    "SD2": Structure(
        Family.SD2,
        _unet(32, transformer_depth=(1, 1, 1, 0)),
        (TextShape(width=32, layers=3, mlp=64, heads=1, kind="openclip", unused_layers=1),),
        _VAE,
    ),
    "SDXL": Structure(
        Family.SDXL,
        _unet(
            80,
            channel_mult=(1, 1, 2),
            num_res_blocks=(2, 2, 2),
            transformer_depth=(0, 1, 2),
            middle_depth=2,
            adm_in_channels=48 + 6 * 256,
        ),
        (
            _CLIP,
            TextShape(width=48, layers=3, mlp=96, heads=1, kind="openclip", projection=48),
        ),
        _VAE,
    ),
}


def tiny_tensors(family: str = "SD1", *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 tensors under every key of a small checkpoint of the family."""
    return random_tensors(TINY[family], seed=seed)


def random_tensors(structure: Structure, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 tensors under every key of a checkpoint of this structure."""
    generator = torch.Generator().manual_seed(seed)
    layers = canonical_layers(structure)
    kinds = {
        place.key: layers[canonical].kind for canonical, place in places(structure, "ldm").items()
    }
    tensors = {}
    for key, shape in checkpoint_shapes(structure).items():
        noise = torch.randn(shape, generator=generator)
        kind = kinds.get(key)
        if kind is None:  # a bias
            tensors[key] = noise * 0.05
        elif kind == "norm":
            tensors[key] = 1 + noise * 0.05
        elif kind == "embedding":
            tensors[key] = noise * 0.1
        else:
            tensors[key] = noise / math.sqrt(max(1, math.prod(shape[1:])))
    return tensors


def tiny_checkpoint(
    path: Path | str, family: str = "SD1", *, seed: int = 0, v_pred: bool = False
) -> Path:
    """Write a small random checkpoint of "SD1", "SD2" or "SDXL" and return its path.

    `v_pred` marks it as v-prediction by the empty key that A1111 and others read.
    """
    tensors = {
        key: tensor.to(torch.float16) for key, tensor in tiny_tensors(family, seed=seed).items()
    }
    tensors.update(_extras(family))
    if v_pred:
        tensors["v_pred"] = torch.zeros(0)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def _extras(family: str) -> dict[str, torch.Tensor]:
    """Keys that real files carry and no layer takes."""
    ids = torch.arange(77).unsqueeze(0)
    if family == "SD1":
        return {
            "cond_stage_model.transformer.text_model.embeddings.position_ids": ids,
            "alphas_cumprod": torch.linspace(0.999, 0.005, 1000),
        }
    if family == "SD2":
        return {
            "cond_stage_model.model.logit_scale": torch.tensor(4.6),
            "cond_stage_model.model.text_projection": torch.zeros(32, 32),
        }
    return {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": ids,
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
    }
