"""Checkpoint file to LoadedModel, through diffusers and transformers; no network, no hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import FileProblem
from extensions_lib.files.checkpoints import Checkpoint, read_checkpoint
from extensions_lib.files.hashes import sha256_file
from extensions_lib.models.families import Family, Structure, TextShape, UNetShape, VAEShape
from extensions_lib.models.loaded import LoadedModel, NoiseSchedule, Prediction
from extensions_lib.models.names import canonical_layers, component_of, places

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

log = logging.getLogger(__name__)

_VAE_SCALE = {Family.SD1: 0.18215, Family.SD2: 0.18215, Family.SDXL: 0.13025}
_IMAGE_SIZE = {Family.SD1: 512, Family.SD2: 768, Family.SDXL: 1024}


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Load a single-file SD1, SD2 or SDXL checkpoint onto a device, ready to run.

    `device` defaults to CUDA where there is one, `dtype` to float16 there and float32 on the
    CPU (bfloat16 works on both). The VAE of SDXL overflows in float16 and stays in float32
    then: ask `model.vae.dtype`. Everything is in eval mode, no parameter requires a gradient.

    What the UNet predicts is, in this order: what the yaml beside the file says; v where the
    file has the marker key `v_pred`; for SD2, which comes in both kinds with equal shapes, what
    a trial step shows (`predicts_v`); else noise.

    Raises:
        FileProblem: unreadable, incomplete, or not a checkpoint of these families.
    """
    path = Path(path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    checkpoint = read_checkpoint(path)
    structure = checkpoint.structure
    if structure.vae is None:
        raise FileProblem(f"{path}: has no VAE in it; bake one in, or use the full file")
    config = checkpoint.config
    vae_scale = (config and config.vae_scale) or _VAE_SCALE[structure.family]
    states = component_states(checkpoint.tensors, structure)
    upcast_vae = structure.family is Family.SDXL and dtype == torch.float16
    unet = _filled(_unet(structure, path), states["unet"], device, dtype)
    texts = tuple(
        _filled(_text_encoder(shape), states[component], device, dtype)
        for component, shape in zip(structure.text_components, structure.texts, strict=True)
    )
    vae = _filled(
        _vae(structure.vae, vae_scale, _IMAGE_SIZE[structure.family]),
        states["vae"],
        device,
        torch.float32 if upcast_vae else dtype,
    )
    return LoadedModel(
        name=path.stem,
        path=path,
        hash=sha256_file(path),
        structure=structure,
        unet=unet,
        text_encoders=texts,
        vae=vae,
        tree="diffusers",
        schedule=_schedule(checkpoint, unet),
        device=device,
        dtype=dtype,
        vae_scale=vae_scale,
        metadata=checkpoint.metadata,
        notes=_notes(checkpoint),
    )


def component_states(
    tensors: Mapping[str, Tensor], structure: Structure
) -> dict[str, dict[str, Tensor]]:
    """Checkpoint tensors (ldm keys) as one diffusers/transformers state dict a component.

    The tensors are views of the given ones: parts of fused attention weights, 1x1 convolutions
    as linear weights and the reverse, the text projection transposed.
    """
    there, here = places(structure, "ldm"), places(structure, "diffusers")
    states: dict[str, dict[str, Tensor]] = {}
    for canonical, info in canonical_layers(structure).items():
        source, target = there[canonical], here[canonical]
        state = states.setdefault(component_of(canonical), {})
        rows = source.rows if source.rows is not None else slice(None)
        weight = tensors[source.key][rows]
        if source.transposed:
            weight = weight.T
        state[f"{target.within}.weight"] = weight.reshape(info.shape)
        if info.bias:
            state[f"{target.within}.bias"] = tensors[source.bias_key][rows]
    return states


@torch.no_grad()
def predicts_v(unet: nn.Module, context_dim: int) -> bool:
    """Whether an SD2 UNet predicts v rather than noise, by one step on a constant input.

    At the last step the input is nearly all noise: a noise predictor gives back about what it
    got, a v predictor about minus the clean latents. The trial and its bound (mean of answer
    minus input below -1, on 8x8 latents of 0.5) are those of the A1111 WebUI, so the same file
    is judged alike.
    """
    parameter = next(unet.parameters())
    given = torch.full((1, 4, 8, 8), 0.5, device=parameter.device, dtype=parameter.dtype)
    context = given.new_full((1, 2, context_dim), 0.5)
    answer = unet(given, torch.tensor([999], device=given.device), context).sample
    return bool((answer.float() - given.float()).mean() < -1)


def _filled(
    model: nn.Module, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Any:
    """Give a model that was built on the meta device its weights."""
    # copy=True: nothing may keep the checkpoint file mapped, or share a fused weight.
    own = {
        key: tensor.to(device=device, dtype=dtype, copy=True).contiguous()
        for key, tensor in state.items()
    }
    model.load_state_dict(own, strict=True, assign=True)
    for name, buffer in model.named_buffers():
        if not buffer.is_meta:
            continue
        if not name.endswith("position_ids"):
            raise RuntimeError(f"{type(model).__name__} has a buffer {name!r} without a value")
        owner = model.get_submodule(name.rpartition(".")[0])
        owner.position_ids = torch.arange(buffer.shape[-1], device=device).unsqueeze(0)
    return model.eval().requires_grad_(False)


def _unet(structure: Structure, path: Path) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    shape = structure.unet
    depths = [depth or 1 for depth in shape.transformer_depth]
    # diffusers takes the middle block's depth from the last level.
    if shape.attention[-1] and shape.transformer_depth[-1] != shape.middle_depth:
        raise FileProblem(
            f"{path}: the middle of the UNet has {shape.middle_depth} transformer blocks and its "
            f"last level {shape.transformer_depth[-1]}; this host needs them equal"
        )
    depths[-1] = shape.middle_depth
    size = _IMAGE_SIZE[structure.family] // 8
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


def _vae(shape: VAEShape, scale: float, size: int) -> AutoencoderKL:
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


def _text_encoder(shape: TextShape) -> CLIPTextModel:
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


def _schedule(checkpoint: Checkpoint, unet: nn.Module) -> NoiseSchedule:
    config, shape = checkpoint.config, checkpoint.structure.unet
    prediction: Prediction | None = checkpoint.prediction
    # SD2's own inpainting and depth models (more channels) predict noise.
    if prediction is None and checkpoint.structure.family is Family.SD2 and shape.in_channels == 4:
        prediction = "v_prediction" if predicts_v(unet, shape.context_dim) else "epsilon"
    return NoiseSchedule.scaled_linear(
        prediction or "epsilon",
        start=(config and config.linear_start) or 0.00085,
        end=(config and config.linear_end) or 0.012,
        steps=(config and config.timesteps) or 1000,
        zero_terminal_snr=checkpoint.zero_terminal_snr,
    )


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    if not checkpoint.unused:
        return ()
    shown = ", ".join(checkpoint.unused[:3])
    note = (
        f"{checkpoint.path.name}: {len(checkpoint.unused)} tensors belong to no layer and are not "
        f"used ({shown}{', …' if len(checkpoint.unused) > 3 else ''})"
    )
    log.warning("%s", note)
    return (note,)
