"""Checkpoint file to LoadedModel, through diffusers and transformers; no network, no hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import FileProblem
from extensions_lib.files.checkpoints import Checkpoint, read_checkpoint
from extensions_lib.files.hashes import sha256_file
from extensions_lib.models.built import IMAGE_SIZE, VAE_SCALE, text_model, unet_model, vae_model
from extensions_lib.models.families import Family
from extensions_lib.models.layouts import component_states
from extensions_lib.models.loaded import LoadedModel, NoiseSchedule, Prediction

log = logging.getLogger(__name__)


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
    vae_scale = (config and config.vae_scale) or VAE_SCALE[structure.family]
    states = component_states(checkpoint.tensors, structure)
    upcast_vae = structure.family is Family.SDXL and dtype == torch.float16
    unet = _filled(unet_model(structure, str(path)), states["unet"], device, dtype)
    texts = tuple(
        _filled(text_model(shape), states[component], device, dtype)
        for component, shape in zip(structure.text_components, structure.texts, strict=True)
    )
    vae = _filled(
        vae_model(structure.vae, vae_scale, IMAGE_SIZE[structure.family]),
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
