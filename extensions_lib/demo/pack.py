"""Writes the trained parts as one checkpoint file in Stable Diffusion 1's layout, and its yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from extensions_lib.demo import diffusion, world
from extensions_lib.files.safe import atomic_write, write_safetensors
from extensions_lib.models.families import Family, Structure, TextShape, UNetShape, VAEShape
from extensions_lib.models.names import canonical_layers, component_of, places

STRUCTURE = Structure(
    Family.SD1,
    UNetShape(
        in_channels=4,
        model_channels=diffusion.CHANNELS,
        channel_mult=diffusion.MULTIPLIERS,
        num_res_blocks=(2,) * len(diffusion.MULTIPLIERS),
        transformer_depth=tuple(int(attention) for attention in diffusion.ATTENTION),
        middle_depth=1,
        context_dim=diffusion.TEXT_WIDTH,
        heads=diffusion.HEADS,
        head_dim=None,
        linear_projection=False,
        adm_in_channels=None,
    ),
    (
        TextShape(
            diffusion.TEXT_WIDTH,
            diffusion.TEXT_LAYERS,
            diffusion.TEXT_MLP,
            diffusion.TEXT_HEADS,
            "clip",
        ),
    ),
    VAEShape(64, (1, 1, 1, 1), 0),
)

_YAML = """\
# The demo checkpoint's architecture, in the form that the WebUIs read beside a checkpoint.
# `version` is the folder with the text encoder's config and tokenizer, relative to the program's
# working folder, or absolute.
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {latent}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: {latent}
        in_channels: 4
        out_channels: 4
        model_channels: {channels}
        attention_resolutions: {attention}
        num_res_blocks: 2
        channel_mult: {multipliers}
        num_heads: {heads}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {context}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: {size}
          in_channels: 3
          out_ch: 3
          ch: 64
          ch_mult: [1, 1, 1, 1]
          num_res_blocks: 0
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: models/demo/clip
"""


def pack(parts: Mapping[str, nn.Module], target: Path, metadata: Mapping[str, str]) -> None:
    """Write the modules "unet", "te1" and "vae" to `target` in fp16, and the yaml beside it.

    The empty key `v_pred` marks v-prediction for programs that do not read the yaml.
    """
    tensors = checkpoint_tensors({name: part.state_dict() for name, part in parts.items()})
    tensors = {key: tensor.half().contiguous() for key, tensor in tensors.items()}
    tensors["v_pred"] = torch.zeros(0)
    write_safetensors(target, tensors, {"format": "pt", **metadata})
    attention = [2**level for level, there in enumerate(diffusion.ATTENTION) if there]
    text = _YAML.format(
        latent=world.SIZE // 8,
        size=world.SIZE,
        channels=diffusion.CHANNELS,
        attention=attention,
        multipliers=list(diffusion.MULTIPLIERS),
        heads=diffusion.HEADS,
        context=diffusion.TEXT_WIDTH,
    )
    with atomic_write(target.with_suffix(".yaml")) as partial:
        Path(partial).write_text(text, encoding="utf-8")


def checkpoint_tensors(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """State dicts of diffusers modules by component, under the demo checkpoint's (ldm) keys."""
    there, here = places(STRUCTURE, "ldm"), places(STRUCTURE, "diffusers")
    tensors = {}
    for canonical, info in canonical_layers(STRUCTURE).items():
        source, target = here[canonical], there[canonical]
        state = states[component_of(canonical)]
        tensors[target.key] = state[f"{source.within}.weight"].reshape(target.shape)
        if info.bias:
            tensors[target.bias_key] = state[f"{source.within}.bias"]
    return tensors
