"""Models for the WebUIs under test: random ones, of the smallest size that each takes.

Forge tells a family by the widths of its UNet alone and has the text encoders' and the VAE's sizes
fixed. AUTOMATIC1111 builds what the yaml beside a checkpoint says, with an OpenCLIP by name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
ARCH, _WIDTH = "ViT-S-32", 384
_OPENCLIP = TextShape(width=_WIDTH, layers=12, mlp=4 * _WIDTH, heads=6, kind="openclip")
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
    save_file({key: tensor.half() for key, tensor in tensors.items()}, path)


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
    """The yaml of an SDXL or SD2 (as v-prediction) checkpoint; `clip`: as `clip_folder` has it."""
    made = _engine(structure, clip) if structure.family is Family.SDXL else _latent(structure)
    path.write_text(yaml.safe_dump({"model": made}))


def _engine(structure: Structure, clip: Path) -> dict[str, Any]:
    """SDXL's: a conditioner of two text encoders and three embedders of sizes."""
    diffusion = "sgm.modules.diffusionmodules"
    encoders = "sgm.modules.encoders.modules"
    first = {"version": str(clip), "layer": "hidden", "layer_idx": structure.texts[0].layers - 1}
    second = {"arch": ARCH, "freeze": True, "layer": "penultimate", "legacy": False,
              "always_return_pooled": True}  # fmt: skip
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    told = [
        ("txt", "FrozenCLIPEmbedder", first),
        ("txt", "FrozenOpenCLIPEmbedder2", second),
        *((size, "ConcatTimestepEmbedderND", {"outdim": 256}) for size in sizes),
    ]
    unet = {"adm_in_channels": structure.unet.adm_in_channels, "num_classes": "sequential"}
    return _target(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
        denoiser_config=_target(
            f"{diffusion}.denoiser.DiscreteDenoiser",
            num_idx=1000,
            weighting_config=_target(f"{diffusion}.denoiser_weighting.EpsWeighting"),
            scaling_config=_target(f"{diffusion}.denoiser_scaling.EpsScaling"),
            discretization_config=_target(f"{diffusion}.discretizer.LegacyDDPMDiscretization"),
        ),
        network_config=_unet(f"{diffusion}.openaimodel.UNetModel", structure.unet, **unet),
        conditioner_config=_target(
            "sgm.modules.GeneralConditioner",
            emb_models=[
                {"is_trainable": False, "input_key": key, **_target(f"{encoders}.{kind}", **given)}
                for key, kind, given in told
            ],
        ),
        first_stage_config=_vae("sgm.models.autoencoder.AutoencoderKLInferenceWrapper"),
    )


def _latent(structure: Structure) -> dict[str, Any]:
    encoder = "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"
    return _target(
        "ldm.models.diffusion.ddpm.LatentDiffusion",
        parameterization="v",
        linear_start=0.00085,
        linear_end=0.012,
        timesteps=1000,
        first_stage_key="jpg",
        cond_stage_key="txt",
        image_size=16,
        channels=4,
        cond_stage_trainable=False,
        conditioning_key="crossattn",
        scale_factor=0.18215,
        use_ema=False,
        unet_config=_unet(
            "ldm.modules.diffusionmodules.openaimodel.UNetModel", structure.unet, image_size=16
        ),
        first_stage_config=_vae("ldm.models.autoencoder.AutoencoderKL"),
        cond_stage_config=_target(encoder, arch=ARCH, freeze=True, layer="penultimate"),
    )


def _unet(target: str, shape: UNetShape, **other: Any) -> dict[str, Any]:
    depths = [max(1, depth) for depth in shape.transformer_depth]
    return _target(
        target,
        in_channels=shape.in_channels,
        out_channels=shape.out_channels,
        model_channels=shape.model_channels,
        attention_resolutions=[2**level for level, used in enumerate(shape.attention) if used],
        num_res_blocks=shape.num_res_blocks[0],
        channel_mult=list(shape.channel_mult),
        num_head_channels=shape.head_dim,
        use_spatial_transformer=True,
        use_linear_in_transformer=shape.linear_projection,
        transformer_depth=depths if len(set(depths)) > 1 else depths[0],
        context_dim=shape.context_dim,
        use_checkpoint=False,
        legacy=False,
        **other,
    )


def _vae(target: str) -> dict[str, Any]:
    plan = {"double_z": True, "z_channels": 4, "resolution": 128, "in_channels": 3, "out_ch": 3,
            "ch": _VAE.channels, "ch_mult": list(_VAE.channel_mult), "attn_resolutions": [],
            "num_res_blocks": _VAE.num_res_blocks, "dropout": 0.0}  # fmt: skip
    loss = {"target": "torch.nn.Identity"}
    return _target(target, embed_dim=4, monitor="val/rec_loss", ddconfig=plan, lossconfig=loss)


def _target(name: str, **params: Any) -> dict[str, Any]:
    return {"target": name, "params": params}
