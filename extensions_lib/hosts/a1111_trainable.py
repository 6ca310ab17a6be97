"""AUTOMATIC1111's checkpoint as training uses it: in a turn of its own, given back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.a1111_memory import Parts, parts_in_turn
from extensions_lib.hosts.webui_trainable import WebUITrainable, frozen
from extensions_lib.models.loaded import LoadedModel

_CLIP_SKIP = "CLIP_stop_at_last_layers"
_TILES = "__webui_hypertile_params"


@contextmanager
def training_on(sd_model: Any, loaded: LoadedModel) -> Iterator[A1111Trainable]:
    """The model for the steps of a turn, with the WebUI's queue lock held by the caller.

    No network or hypernetwork acts on it meanwhile, and no parameter of its own asks for gradients.
    All is put back at the end, also of a turn that failed. Raises CrucibleError where a setting of
    the WebUI stands in the way.
    """
    from modules import devices, sd_unet, shared

    if sd_unet.current_unet is not None:
        raise CrucibleError(
            "the WebUI's UNet is replaced by a compiled one; set SD Unet to None to train."
        )
    acting, shared.loaded_hypernetworks = shared.loaded_hypernetworks, []
    # as it will be asked; with little memory the weights themselves come when they are needed
    there = replace(loaded, device=devices.device, dtype=devices.dtype_unet)
    try:
        with (
            frozen([loaded.unet, *loaded.text_encoders, loaded.vae]),
            whole_pictures([loaded.unet, loaded.vae]),
            parts_in_turn(sd_model) as parts,
        ):
            yield A1111Trainable(sd_model, there, parts)
    finally:
        shared.loaded_hypernetworks = acting


@contextmanager
def whole_pictures(roots: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, attention is not computed in tiles, as Hypertile has it after an order.

    Those are of the order's size, and drawn anew in each pass.
    """
    told = [getattr(module, _TILES, None) for root in roots for module in root.modules()]
    tiled = [each for each in told if each is not None and each.enabled]
    for each in tiled:
        each.enabled = False
    try:
        yield
    finally:
        for each in tiled:
            each.enabled = True


class A1111Trainable(WebUITrainable):
    """Encodes through the hijacked text encoders, predicts through `apply_model`."""

    def __init__(self, sd_model: Any, loaded: LoadedModel, parts: Parts) -> None:
        super().__init__(sd_model, loaded)
        self._parts = parts

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Trainable.encode_pictures`."""
        with self._parts.lend(self.loaded.vae):
            return super().encode_pictures(pixels)

    @contextmanager
    def _ready_to_encode(self, clip_skip: int) -> Iterator[None]:
        from modules import devices
        from modules.shared import opts

        if opts.use_old_emphasis_implementation:
            raise CrucibleError(
                "prompts are encoded in the WebUI's old way; switch off 'Use old emphasis "
                "implementation' in the settings to train."
            )
        before = opts.data.get(_CLIP_SKIP)
        opts.data[_CLIP_SKIP] = clip_skip
        try:
            with self._text_encoders_there(), devices.autocast():
                yield
        finally:
            if before is None:
                del opts.data[_CLIP_SKIP]
            else:
                opts.data[_CLIP_SKIP] = before

    @contextmanager
    def _text_encoders_there(self) -> Iterator[None]:
        """For the time of encoding, or until the turn ends where gradients go back through them."""
        root = self.sd_model.cond_stage_model
        if torch.is_grad_enabled():
            self._parts.keep(root)
            yield
        else:
            with self._parts.lend(root):
                yield

    def _engines(self) -> Sequence[Any]:
        stage = self.sd_model.cond_stage_model
        parts = getattr(stage, "embedders", None)
        if parts is None:
            return [stage]
        # asked one by one: as a whole, SDXL's encoders answer without gradients
        return [part for part in parts if hasattr(part, "process_tokens")]

    def _fixes_of(self, engine: Any) -> Any:
        return engine.hijack

    def _predicted(
        self, noisy: Tensor, timesteps: Tensor, states: Tensor, vector: Tensor | None
    ) -> Tensor:
        from modules import devices

        self._parts.keep(self.sd_model.model)
        device, dtype = devices.device, devices.dtype_unet
        told: dict[str, Any] = {"c_crossattn": [states.to(device, dtype)]}
        if vector is not None:
            told = {"crossattn": states.to(device, dtype), "vector": vector.to(device, dtype)}
        with devices.autocast():
            answer: Tensor = self.sd_model.apply_model(
                noisy.to(device, dtype), timesteps.to(device), told
            )
        return answer
