"""AUTOMATIC1111's WebUI: the checkpoint that it has loaded, as a LoadedModel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from extensions_lib.errors import NetworkProblem
from extensions_lib.hosts.networks import InForce
from extensions_lib.hosts.webui_checkpoint import FOR, noted, structure_by
from extensions_lib.models.built import VAE_SCALE
from extensions_lib.models.loaded import LoadedModel, NoiseSchedule
from extensions_lib.models.structures import structure_of
from extensions_lib.models.trainable import Trainable
from extensions_lib.patching import ActiveSet, Room
from extensions_lib.patching.room import from_gigabytes

_BEFORE_LOADING = "crucible_before_loading"


def loaded_model(sd_model: Any) -> LoadedModel:
    """The WebUI's `shared.sd_model` as Crucible sees it; nothing is copied or moved.

    The hijack puts some modules of the text encoders inside others, as their `wrapped`; the roots
    returned lie inside those, and `LoadedModel.layer` looks through the rest.

    Raises:
        NetworkProblem: it is no SD1, SD2 or SDXL model (Stable Diffusion 3, an upscaler, …).
    """
    about = noted(sd_model)
    name = about["name"]
    try:
        unet, vae = sd_model.model.diffusion_model, sd_model.first_stage_model
        texts = {path: _reached(sd_model, path) for path in _text_paths(sd_model)}
    except AttributeError as error:
        raise NetworkProblem(
            f"{name}: {FOR}; this one is built in another way ({error})"
        ) from error
    roots = {"model.diffusion_model": unet, "first_stage_model": vae, **texts}
    shapes = {
        f"{root}.{within}": shape
        for root, module in roots.items()
        for within, shape in _shapes(module)
    }
    structure = structure_by(lambda: structure_of(shapes, label=name))
    weight = next(unet.parameters())
    parameterization = getattr(sd_model, "parameterization", "eps")
    return LoadedModel(
        **about,
        structure=structure,
        unet=unet,
        text_encoders=tuple(texts.values()),
        vae=vae,
        tree="ldm",
        schedule=NoiseSchedule(
            sd_model.alphas_cumprod.detach().float().cpu(),
            "v_prediction" if parameterization == "v" else "epsilon",
        ),
        device=weight.device,
        dtype=weight.dtype,
        vae_scale=VAE_SCALE[structure.family],
    )


def _text_paths(sd_model: Any) -> list[str]:
    """Where in the ldm tree the text encoders lie, in the order of their components."""
    conditioner = getattr(sd_model, "conditioner", None)
    if conditioner is not None and hasattr(conditioner, "embedders"):
        # Besides the text encoders there are embedders of sizes, without weights.
        inner = [_unwrapped(embedder) for embedder in conditioner.embedders]
        kinds = ["transformer" if hasattr(i, "transformer") else "model" for i in inner]
        return [
            f"conditioner.embedders.{number}.{kind}"
            for number, (module, kind) in enumerate(zip(inner, kinds, strict=True))
            if hasattr(module, kind)
        ]
    stage = _unwrapped(sd_model.cond_stage_model)
    return [f"cond_stage_model.{'transformer' if hasattr(stage, 'transformer') else 'model'}"]


def _unwrapped(module: Any) -> Any:
    while isinstance(module, nn.Module) and "wrapped" in module._modules:
        module = module.wrapped
    return module


def _reached(module: Any, path: str) -> nn.Module:
    for part in path.split("."):
        # What lies beside a `wrapped` comes first: on SDXL's conditioner that is an empty stand-in.
        inner = module if part in module._modules else _unwrapped(module)
        module = inner[int(part)] if part.isdigit() else getattr(inner, part)
    found: nn.Module = module
    return found


def _shapes(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """State-dict keys and shapes without the hijack's wrappers. Parameters alone carry networks."""
    for key, parameter in module.named_parameters():
        yield key.replace("wrapped.", ""), tuple(parameter.shape)


def clear_before_loading(sd_model: nn.Module, networks: ActiveSet) -> None:
    """Takes the networks off whenever the WebUI is about to read other weights into the model.

    A refiner of the same config is read in the middle of sampling. Merged weights stand in the
    modules then: what is read would be theirs, and lost when the originals come back.
    """
    earlier = getattr(sd_model, _BEFORE_LOADING, None)
    if earlier is not None:
        earlier.remove()
    hook = sd_model._register_load_state_dict_pre_hook(lambda *_: networks.clear())
    setattr(sd_model, _BEFORE_LOADING, hook)


def forget_builtin() -> None:
    """Takes the builtin handler's networks off the model, where it has ever applied one.

    It keeps what it wrote over, and would put that back in a later forward pass, on top of ours.
    """
    import sys

    builtin = sys.modules.get("networks")
    if builtin is None or not hasattr(builtin, "network_apply_weights"):
        return
    if getattr(builtin, "loaded_networks", None):
        builtin.load_networks([])
    from modules import sd_models

    model = sd_models.model_data.sd_model
    if not isinstance(model, nn.Module):
        return
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "network_current_names", ()):
                builtin.network_apply_weights(module)


class A1111:
    """AUTOMATIC1111's WebUI as `hosts.webui` asks for it."""

    name = "AUTOMATIC1111"

    def loaded_model(self, sd_model: Any) -> LoadedModel:
        return loaded_model(sd_model)

    def in_force(self, sd_model: Any, model: LoadedModel) -> InForce:
        from modules import shared

        # asked at every set, so that the setting holds from the next picture on
        networks = ActiveSet(
            model,
            Room(lambda: from_gigabytes(getattr(shared.opts, "crucible_originals_gb", None))),
        )
        clear_before_loading(sd_model, networks)
        return networks

    def forget_builtin(self) -> None:
        forget_builtin()

    def take_over_more(self, session: Any) -> None:
        """Its own handlers do what they say."""

    def bare(self, sd_model: Any) -> None:
        """A parked set has given the original weights back already."""

    def training_on(self, sd_model: Any, model: LoadedModel) -> AbstractContextManager[Trainable]:
        from extensions_lib.hosts.a1111_trainable import training_on

        return training_on(sd_model, model)

    def current(self) -> Any:
        from modules import shared

        return shared.sd_model

    def sampling(self) -> Any:
        return self.current()
