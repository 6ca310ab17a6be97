"""The models of a plan as diffusers and transformers build them, on the meta device: no weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.models.families import Family, Structure, TextShape, UNetShape, VAEShape

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

# CLIP's vocabulary, which every model here has, as a tokenizer's folder.
VOCABULARY = Path(__file__).resolve().parents[2] / "models" / "demo" / "clip"
VAE_SCALE = {Family.SD1: 0.18215, Family.SD2: 0.18215, Family.SDXL: 0.13025}
IMAGE_SIZE = {Family.SD1: 512, Family.SD2: 768, Family.SDXL: 1024}  # pixels of a side


def unet_model(structure: Structure, label: str) -> UNet2DConditionModel:
    """The UNet. Raises FileProblem, with `label` first, for a plan that diffusers cannot build."""
    import torch
    from diffusers import UNet2DConditionModel

    shape = structure.unet
    depths = [depth or 1 for depth in shape.transformer_depth]
    # diffusers takes the middle block's depth from the last level.
    if shape.attention[-1] and shape.transformer_depth[-1] != shape.middle_depth:
        raise FileProblem(
            f"{label}: the middle of the UNet has {shape.middle_depth} transformer blocks and its "
            f"last level {shape.transformer_depth[-1]}; diffusers needs them equal"
        )
    depths[-1] = shape.middle_depth
    size = IMAGE_SIZE[structure.family] // 8
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=size,
            in_channels=shape.in_channels,
            out_channels=shape.out_channels,
            down_block_types=_block_types(shape, "Down"),
            up_block_types=_block_types(shape, "Up")[::-1],
            block_out_channels=shape.channels,
            layers_per_block=shape.num_res_blocks,
            transformer_layers_per_block=tuple(depths),
            # The name notwithstanding, diffusers reads head counts here.
            attention_head_dim=shape.level_heads,
            cross_attention_dim=shape.context_dim,
            use_linear_projection=shape.linear_projection,
            upcast_attention=structure.family is Family.SD2,
            **_size_embedding(shape),
        )


def _block_types(shape: UNetShape, way: str) -> tuple[str, ...]:
    return tuple(
        f"CrossAttn{way}Block2D" if attention else f"{way}Block2D" for attention in shape.attention
    )


def _size_embedding(shape: UNetShape) -> dict[str, Any]:
    if shape.adm_in_channels is None:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": shape.adm_in_channels,
    }


def vae_model(shape: VAEShape, scale: float, size: int) -> AutoencoderKL:
    """The autoencoder; `scale` is what its latents are multiplied by, `size` pixels of a side."""
    import torch
    from diffusers import AutoencoderKL

    levels = len(shape.channel_mult)
    with torch.device("meta"):
        return AutoencoderKL(
            in_channels=shape.image_channels,
            out_channels=shape.image_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(shape.channels * mult for mult in shape.channel_mult),
            layers_per_block=shape.num_res_blocks,
            latent_channels=shape.latent_channels,
            sample_size=size,
            scaling_factor=scale,
        )


def text_model(shape: TextShape) -> CLIPTextModel:
    """A text encoder, with its projection where the plan has one."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.positions,
        hidden_act="quick_gelu" if shape.kind == "clip" else "gelu",
        projection_dim=shape.projection or shape.width,
        # The last two tokens of every CLIP vocabulary mark start and end.
        bos_token_id=shape.vocab - 2,
        eos_token_id=shape.vocab - 1,
    )
    model = CLIPTextModel if shape.projection is None else CLIPTextModelWithProjection
    with torch.device("meta"):
        return model(config)
