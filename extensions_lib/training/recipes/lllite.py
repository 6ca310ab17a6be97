"""A ControlNet-LLLite is trained: a small side path by which a condition picture steers SDXL.

Which layers have one, and of which sizes, is as in kohya's sd-scripts
(networks/control_net_lllite.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from extensions_lib.adapters.lllite import KERNELS, LATENT, LLLite
from extensions_lib.errors import CrucibleError
from extensions_lib.files.lllite import write_lllite
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.names import canonical_layers
from extensions_lib.models.trainable import Trainable
from extensions_lib.patching.lllite_in_training import LLLiteInTraining
from extensions_lib.training.recipe_options import LLLiteTraining
from extensions_lib.training.recipes.prompts import conditioning_of
from extensions_lib.training.step import Batch, diffusion_losses

_ENTRANCES = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q")


def depths(structure: Structure) -> dict[str, int]:
    """The layers that get a side path: all that see the picture, but those on the way up.

    By canonical name; the depth of its stack follows from how small the picture is there.
    """
    found = {}
    for canonical in canonical_layers(structure):
        if canonical.startswith("unet.") and canonical.endswith(_ENTRANCES):
            _, block, rest = canonical.split(".", 2)
            if block == "down_blocks":
                found[canonical] = int(rest.partition(".")[0]) + 1
            elif block == "mid_block":
                found[canonical] = structure.unet.levels
    return {canonical: depth for canonical, depth in found.items() if depth in KERNELS}


class LLLiteRecipe:
    """Trains side paths on the UNet of `model`; fresh ones unless given, to go on with.

    Raises CrucibleError for a model that is no SDXL, AdapterError for paths that do not fit it.
    """

    reads = False

    def __init__(
        self,
        model: Trainable,
        options: LLLiteTraining,
        learning_rate: float,
        *,
        seed: int = 0,
        layers: Mapping[str, LLLite] | None = None,
    ) -> None:
        loaded = model.loaded
        if loaded.family is not Family.SDXL:
            raise CrucibleError(
                f"ControlNet-LLLite is for SDXL; {loaded.name} is {loaded.family}. Load an SDXL "
                "checkpoint, or train another kind."
            )
        self.model, self.options = model, options
        generator = torch.Generator().manual_seed(seed)
        begun = layers or {
            layer: LLLite.fresh(
                loaded.layers[layer].shape[1],
                depth,
                cond_dim=options.cond_emb_dim,
                mlp_dim=options.mlp_dim,
                generator=generator,
            )
            for layer, depth in depths(loaded.structure).items()
        }
        self._set = LLLiteInTraining(
            loaded, {layer: _copied(path, loaded.device) for layer, path in begun.items()}
        )
        params = list(self.tensors().values())
        self._groups = [{"params": params, "lr": learning_rate, "name": "lllite"}]

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """As `Recipe.groups`."""
        return self._groups

    def tensors(self) -> dict[str, Tensor]:
        """As `Recipe.tensors`."""
        return {
            f"{layer}.{part}": tensor
            for layer, path in self._set.layers.items()
            for part, tensor in path.parameters().items()
        }

    def put_in(self) -> None:
        """As `Recipe.put_in`."""
        self._set.put_in()

    def take_out(self) -> None:
        """As `Recipe.take_out`."""
        self._set.take_out()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As `Recipe.losses`. Raises CrucibleError for pictures without a condition picture."""
        if batch.control is None:
            raise CrucibleError(
                f"{batch.names[0]}: has no condition picture; ControlNet-LLLite learns from pairs."
            )
        conditioning = conditioning_of(self.model, batch, self.options)
        self.follow(batch.control, batch.latents.shape[-2:])
        return diffusion_losses(self.model, batch, conditioning, self.options, generator)

    def follow(self, control: Tensor, latents: Sequence[int]) -> None:
        """What the next answers of the UNet follow, until `take_out`.

        control [1 or B, 3, H, W] from −1 to 1, of any size; latents: the sides of theirs.
        """
        size = [LATENT * side for side in latents]
        control = control.to(self.model.loaded.device, torch.float32)
        if list(control.shape[-2:]) != size:
            control = functional.interpolate(control, size, mode="bilinear", antialias=True)
        self._set.show(control)

    def after_step(self) -> None:
        """As `Recipe.after_step`: nothing."""

    def without_dropout(self) -> AbstractContextManager[None]:
        """As `Recipe.without_dropout`: there is none."""
        return nullcontext()

    def learnt(self, values: Mapping[str, Tensor] | None = None) -> dict[str, LLLite]:
        """The side paths as they are now, apart from the run; `values`: others for them."""
        held = values or self.tensors()
        return {
            layer: LLLite.from_tensors(
                {part: held[f"{layer}.{part}"].detach().cpu().clone() for part in path.tensors()}
            )
            for layer, path in self._set.layers.items()
        }

    def save(
        self,
        path: Path,
        metadata: Mapping[str, str],
        dtype: torch.dtype | None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """As `Recipe.save`; spelled as kohya does."""
        write_lllite(path, self.learnt(values), self.model.loaded.structure, metadata, dtype)


def _copied(path: LLLite, device: torch.device) -> LLLite:
    parts = {
        name: tensor.detach().to(device, torch.float32, copy=True).requires_grad_(True)
        for name, tensor in path.tensors().items()
    }
    return LLLite.from_tensors(parts)
