"""Models for the WebUIs under test: random ones, of the smallest size that each takes.

Forge tells a family by the widths of its UNet alone and has the text encoders' and the VAE's sizes
fixed. AUTOMATIC1111 builds what the yaml beside a checkpoint says, with an OpenCLIP by name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from extensions_lib.models import Family, Structure, UNetShape, VAEShape, canonical_layers, flat
from extensions_lib.models.families import CLIP_L, SDXL_BASE, TextShape
from extensions_lib.models.names import component_of, flat_ldm
from tests.tiny import random_tensors

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

# Forge's smallest SDXL: the encoders and depths of the real one, its UNet of one width.
NARROW_XL = replace(SDXL_BASE, unet=replace(SDXL_BASE.unet, channel_mult=(1, 1, 1)))

# AUTOMATIC1111's: all is small but the second text encoder, which is one that open_clip knows.
ARCH, _WIDTH = "ViT-S-32-alt", 256
_OPENCLIP = TextShape(width=_WIDTH, layers=10, mlp=4 * _WIDTH, heads=4, kind="openclip")
_SGM = "repositories/generative-models/configs/inference"
_LDM = "repositories/stable-diffusion-stability-ai/configs/stable-diffusion"
_YAML = {
    Family.SDXL: f"{_SGM}/sd_xl_base.yaml",
    "refiner": f"{_SGM}/sd_xl_refiner.yaml",
    Family.SD2: f"{_LDM}/v2-inference-v.yaml",
}
_CLIP = TextShape(width=32, layers=2, mlp=64, heads=1, kind="clip")
_VAE = VAEShape(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
TINY_XL = Structure(
    Family.SDXL,
    UNetShape(
        in_channels=4,
        model_channels=64,
        channel_mult=(1, 1, 2),
        num_res_blocks=(2, 2, 2),
        transformer_depth=(0, 1, 2),
        middle_depth=2,
        context_dim=_CLIP.width + _WIDTH,
        heads=None,
        head_dim=64,
        linear_projection=True,
        adm_in_channels=_WIDTH + 6 * 256,
    ),
    (_CLIP, replace(_OPENCLIP, projection=_WIDTH)),
    _VAE,
)
TINY_REFINER = Structure(  # the second text encoder alone, and one size fewer
    Family.SDXL,
    replace(
        TINY_XL.unet,
        channel_mult=(1, 1, 2, 2),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(0, 1, 1, 0),
        middle_depth=1,
        context_dim=_WIDTH,
        adm_in_channels=_WIDTH + 5 * 256,
    ),
    TINY_XL.texts[1:],
    _VAE,
)
TINY_SD2 = Structure(
    Family.SD2,
    UNetShape(
        in_channels=4,
        model_channels=64,
        channel_mult=(1, 2, 2),
        num_res_blocks=(2, 2, 2),
        transformer_depth=(1, 1, 0),
        middle_depth=1,
        context_dim=_WIDTH,
        heads=None,
        head_dim=64,
        linear_projection=True,
        adm_in_channels=None,
    ),
    (replace(_OPENCLIP, unused_layers=1),),
    _VAE,
)


def small_checkpoint(path: Path, seed: int = 0, structure: Structure = SMALL) -> None:
    """Writes a random checkpoint in float16; that of `SMALL` has 250 million parameters."""
    tensors = random_tensors(structure, seed=seed)
    for key, tensor in tensors.items():  # one by one: a large one is not in memory twice
        tensors[key] = tensor.half()
    save_file(tensors, path)


def small_networks(folder: Path) -> None:
    """Writes random LoRA, with names and kinds as those that ship for the demo checkpoint."""
    folder.mkdir(parents=True)
    random_lora(folder / "star.safetensors", seed=1, kinds=("linear", "conv"))
    random_lora(folder / "heart.safetensors", seed=2, kinds=("linear", "conv"))
    random_lora(folder / "heart-linear.safetensors", seed=3, kinds=("linear",))


# --- networks -------------------------------------------------------------------------------------

Naming = Callable[[str, Structure], str]


def kohya(canonical: str, structure: Structure) -> str:
    """A layer's name as kohya's trainer writes it: the UNet of SDXL after the original code."""
    if structure.family is Family.SDXL and component_of(canonical) == "unet":
        return flat_ldm(canonical, structure)
    return flat(canonical, structure.family)


def diffusers(canonical: str, structure: Structure) -> str:
    """The other naming of SDXL's UNet, after diffusers."""
    return flat(canonical, structure.family)


def random_lora(
    path: Path,
    seed: int,
    kinds: tuple[str, ...],
    rank: int = 4,
    structure: Structure = SMALL,
    naming: Naming = kohya,
) -> None:
    """A LoRA on the text encoders and the UNet whose effect is plain to see."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for canonical, shape in _adapted(structure, kinds).items():
        down, up = _factors(shape, rank, 0.3, generator)
        name = naming(canonical, structure)
        found[f"{name}.lora_down.weight"] = down
        found[f"{name}.lora_up.weight"] = up
        found[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(found, path, {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)})


def random_loha(path: Path, seed: int, structure: Structure, rank: int = 4) -> None:
    """A LoHa on the linear layers: the product, number by number, of two pairs of factors."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for canonical, shape in _adapted(structure, ("linear",)).items():
        name = kohya(canonical, structure)
        for pair, scale in (("1", 1.0), ("2", 0.3 * rank)):
            down, up = _factors(shape, rank, scale, generator)
            found[f"{name}.hada_w{pair}_a"], found[f"{name}.hada_w{pair}_b"] = up, down
            if pair == "1":
                found[f"{name}.hada_w1_b"] *= shape[1] ** 0.5
        found[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(found, path)


def _adapted(structure: Structure, kinds: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the layers of these kinds that trainers adapt."""
    return {
        canonical: layer.shape
        for canonical, layer in canonical_layers(structure).items()
        if layer.kind in kinds
        and not canonical.startswith("vae")
        and not canonical.endswith("text_projection")
    }


def _factors(
    shape: tuple[int, ...], rank: int, size: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    out, *rest = shape
    down = torch.randn(rank, *rest, generator=generator)
    scale = size / down[0].numel() ** 0.5 / rank
    up = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=generator) * scale
    return down, up


# --- what AUTOMATIC1111 wants beside a checkpoint of another size ---------------------------------


def clip_folder(clip: Path, folder: Path, text: TextShape = _CLIP) -> None:
    """Copies a tokenizer with its config, and writes the width of a text encoder into that."""
    shutil.copytree(clip, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": text.width,
        "intermediate_size": text.mlp,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "projection_dim": text.width,
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_config(path: Path, structure: Structure, clip: Path) -> None:
    """The WebUI's own yaml for SDXL, its refiner, or SD2 that predicts v, with other sizes.

    clip: a folder as `clip_folder` makes it; SD2 needs none.
    """
    unet, vae = structure.unet, structure.vae
    named = "refiner" if structure.text_components == ("te2",) else structure.family
    config = yaml.safe_load((Path(os.environ["WEBUI_DIR"]) / _YAML[named]).read_text())
    params = config["model"]["params"]
    if structure.family is Family.SDXL:
        own = params["network_config"]["params"]
        own["adm_in_channels"] = unet.adm_in_channels
        own["transformer_depth"] = [max(1, depth) for depth in unet.transformer_depth]
        *first, openclip = params["conditioner_config"]["params"]["emb_models"][
            : len(structure.texts)
        ]
        for each in first:
            each["params"] |= {"version": str(clip), "layer_idx": structure.texts[0].layers - 1}
    else:
        own, openclip = params["unet_config"]["params"], params["cond_stage_config"]
    openclip["params"]["arch"] = ARCH
    own |= {
        "model_channels": unet.model_channels,
        "channel_mult": list(unet.channel_mult),
        "num_res_blocks": unet.num_res_blocks[0],
        "num_head_channels": unet.head_dim,
        "attention_resolutions": [2**level for level, has in enumerate(unet.attention) if has],
        "context_dim": unet.context_dim,
    }
    if vae is not None:
        params["first_stage_config"]["params"]["ddconfig"] |= {
            "ch": vae.channels,
            "ch_mult": list(vae.channel_mult),
            "num_res_blocks": vae.num_res_blocks,
        }
    path.write_text(yaml.safe_dump(config))
