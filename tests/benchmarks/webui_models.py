"""What `bench webui` works on: a random full-size SD1.5 checkpoint and random networks for it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from extensions_lib.adapters import LoRA
from extensions_lib.files.networks import write_network
from extensions_lib.models import Structure, canonical_layers
from tests.tiny import random_tensors

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def write_checkpoint(path: Path, structure: Structure) -> None:
    """A checkpoint in ldm's layout, float16, with the yaml and the text encoder's folder beside."""
    tensors = random_tensors(structure)
    for key in tensors:  # one by one: both precisions at once would take half as much again
        tensors[key] = tensors[key].half()
    path.parent.mkdir(parents=True)
    save_file(tensors, path)
    clip = path.parent / "clip"
    write_text_encoder(clip, structure)
    config = yaml.safe_load((DEMO / "demo.yaml").read_text("utf-8"))
    settle(config["model"]["params"], structure, clip)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config), "utf-8")


def write_text_encoder(folder: Path, structure: Structure) -> None:
    """The demo's tokenizer, which is CLIP's, with the width of this structure's text encoder."""
    folder.mkdir()
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).symlink_to(DEMO / "clip" / name)
    text = structure.texts[0]
    config = json.loads((DEMO / "clip" / "config.json").read_text("utf-8"))
    config |= {"hidden_size": text.width, "projection_dim": text.width}
    config |= {"intermediate_size": text.mlp, "num_hidden_layers": text.layers}
    config |= {"num_attention_heads": text.heads}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def settle(params: dict[str, Any], structure: Structure, clip: Path) -> None:
    """Gives the demo's config this structure's sizes."""
    unet, vae = structure.unet, structure.vae
    assert unet is not None and vae is not None
    params |= {"parameterization": "eps", "linear_end": 0.012}
    params["cond_stage_config"]["params"]["version"] = str(clip)
    params["unet_config"]["params"] |= {
        "model_channels": unet.model_channels,
        "attention_resolutions": [2**level for level, depth in enumerate(unet.attention) if depth],
        "num_res_blocks": unet.num_res_blocks[0],
        "channel_mult": list(unet.channel_mult),
        "num_heads": unet.heads,
        "context_dim": unet.context_dim,
    }
    params["first_stage_config"]["params"]["ddconfig"] |= {
        "ch": vae.channels,
        "ch_mult": list(vae.channel_mult),
        "num_res_blocks": vae.num_res_blocks,
    }


def layers(structure: Structure, words: tuple[str, ...] = ("",)) -> dict[str, tuple[int, ...]]:
    """Linear layers and convolutions of UNet and text encoders, of those that say such a word."""
    return {
        canonical: layer.shape
        for canonical, layer in canonical_layers(structure).items()
        if layer.kind in ("linear", "conv")
        and not canonical.startswith("vae.")
        and any(word in canonical for word in words)
    }


def weights(touched: dict[str, tuple[int, ...]]) -> int:
    """How many numbers these layers hold."""
    return sum(math.prod(shape) for shape in touched.values())


def write_lora(path: Path, touched: dict[str, tuple[int, ...]], rank: int, seed: int) -> None:
    """A LoRA over these layers, in float16, that changes each by about a tenth of its size."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for canonical, shape in touched.items():
        lora = LoRA.fresh(shape, rank, float(rank), generator=generator)
        lora.up.normal_(0, 0.17 / math.sqrt(rank), generator=generator)
        adapters[canonical] = lora
    os.makedirs(path.parent, exist_ok=True)
    write_network(path, adapters, dtype=torch.float16)
