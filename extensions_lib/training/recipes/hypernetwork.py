"""A hypernetwork is trained: small MLPs before the keys and values of every attention layer.

How one is built and begun is as in AUTOMATIC1111's WebUI, so that its files go on here and ours
there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extensions_lib.errors import CrucibleError
from extensions_lib.files.hypernetworks import (
    MAX_LAYERS,
    Activation,
    Dropout,
    Hypernetwork,
    Layer,
    LayerNorm,
    Linear,
    Mlp,
    write_hypernetwork,
)
from extensions_lib.models.trainable import Trainable
from extensions_lib.patching.hypernetwork import Hypernetworks
from extensions_lib.training.recipe_options import HypernetworkOptions, HypernetworkTraining
from extensions_lib.training.recipes.prompts import conditioning_of
from extensions_lib.training.step import Batch, diffusion_losses

_WHICH = ("keys", "values")
_USUAL_DROPOUT = 0.3  # the WebUI's share where it is asked for dropout and no share is named


class HypernetworkRecipe:
    """Trains a hypernetwork on the UNet of `model`; a fresh one unless one is given, to go on with.

    Raises CrucibleError for a structure that cannot be, or one that fits no layer.
    """

    reads = False

    def __init__(
        self,
        model: Trainable,
        options: HypernetworkTraining,
        learning_rate: float,
        *,
        seed: int = 0,
        hypernetwork: Hypernetwork | None = None,
    ) -> None:
        self.model, self.options = model, options
        self._on = Hypernetworks(model.loaded)
        widths = self._on.widths()
        if hypernetwork is None:
            generator = torch.Generator().manual_seed(seed)
            hypernetwork = fresh_hypernetwork(_sizes(options, widths), options, generator)
        if not widths.intersection(hypernetwork.widths):
            raise CrucibleError(
                f"{hypernetwork.name}: is for contexts {hypernetwork.widths} wide; "
                f"{model.loaded.name} has {tuple(sorted(widths))}."
            )
        device = model.loaded.device
        self._plain = _each(
            hypernetwork, lambda t: t.to(device, torch.float32, copy=True).requires_grad_(True)
        )
        self._dropping = replace(
            self._plain,
            mlps={
                width: (_dropped(keys, self._plain.dropout), _dropped(values, self._plain.dropout))
                for width, (keys, values) in self._plain.mlps.items()
            },
        )
        self._now = self._dropping
        params = list(self.tensors().values())
        self._groups = [{"params": params, "lr": learning_rate, "name": "hypernetwork"}]

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """As `Recipe.groups`."""
        return self._groups

    def tensors(self) -> dict[str, Tensor]:
        """As `Recipe.tensors`."""
        return dict(_named(self._plain))

    def put_in(self) -> None:
        """As `Recipe.put_in`."""
        self._on.apply([(self._now, 1.0)])

    def take_out(self) -> None:
        """As `Recipe.take_out`."""
        self._on.clear()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As `Recipe.losses`."""
        conditioning = conditioning_of(self.model, batch, self.options)
        return diffusion_losses(self.model, batch, conditioning, self.options, generator)

    def after_step(self) -> None:
        """As `Recipe.after_step`: nothing."""

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """As `Recipe.without_dropout`; inside `put_in` and `take_out`."""
        self._now = self._plain
        self.put_in()
        try:
            yield
        finally:
            self._now = self._dropping
            self.put_in()

    def learnt(
        self, values: Mapping[str, Tensor] | None = None, *, step: int | None = None
    ) -> Hypernetwork:
        """It as it is now, apart from the run; `values`: others for its tensors."""
        held, loaded = values or self.tensors(), self.model.loaded
        names = {id(tensor): name for name, tensor in _named(self._plain)}
        now = _each(self._plain, lambda t: held[names[id(t)]].detach().float().cpu().clone())
        return replace(
            now,
            step=step if step is not None else now.step,
            checkpoint_hash=loaded.hash[:10] or None,
            checkpoint=loaded.name,
        )

    def save(
        self,
        path: Path,
        metadata: Mapping[str, str],
        dtype: torch.dtype,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """As `Recipe.save`, as a `.pt`, which has no room for metadata but step and comment.

        Always in fp32, as the WebUI's own files are.
        """
        steps = metadata.get("ss_steps", "")
        learnt = self.learnt(values, step=int(steps) if steps.isdecimal() else None)
        info = metadata.get("ss_training_comment") or learnt.info
        write_hypernetwork(path, replace(learnt, name=path.stem, info=info))


def fresh_hypernetwork(
    widths: Sequence[int], options: HypernetworkOptions, generator: torch.Generator
) -> Hypernetwork:
    """A new one for contexts of these widths. Raises CrucibleError for what cannot be built."""
    structure = options.layer_structure
    fair = 2 <= len(structure) <= MAX_LAYERS and all(0 < part <= MAX_LAYERS for part in structure)
    if not fair or (structure[0], structure[-1]) != (1, 1):
        raise CrucibleError(
            f"layer_structure: {', '.join(f'{p:g}' for p in structure)} has to go from 1 to 1, "
            "such as 1, 2, 1."
        )
    return Hypernetwork(
        "",
        {
            width: (_fresh(width, options, generator), _fresh(width, options, generator))
            for width in widths
        },
        structure,
        None if options.activation_func == "linear" else options.activation_func,
        options.is_layer_norm,
        options.activate_output,
        dropout=_dropout_structure(options),
        initialisation=options.weight_initialization,
    )


def _sizes(options: HypernetworkOptions, there: set[int]) -> list[int]:
    return sorted(set(options.enable_sizes) or there)


def _dropout_structure(options: HypernetworkOptions) -> tuple[float, ...]:
    """As the WebUI reads these options: unless asked, none before the last layer."""
    length, named = len(options.layer_structure), options.dropout_structure
    if not options.use_dropout or (not named and length == 2):
        return ()
    if not named:
        last = _USUAL_DROPOUT if options.last_layer_dropout else 0.0
        named = (0.0, *[_USUAL_DROPOUT] * (length - 3), last, 0.0)
    if len(named) != length or named[0] or named[-1]:
        raise CrucibleError(
            f"dropout_structure: needs {length} shares, as layer_structure has widths, the first "
            "and the last of them 0."
        )
    return named if any(named) else ()


def _fresh(width: int, options: HypernetworkOptions, generator: torch.Generator) -> Mlp:
    layers: list[Layer] = []
    sizes = [int(width * part) for part in options.layer_structure]
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = _begun((outputs, inputs), options.weight_initialization, generator)
        layers.append(Linear(weight, torch.zeros(outputs)))
        last = number == len(sizes) - 2
        if options.activation_func != "linear" and (options.activate_output or not last):
            prelu = options.activation_func == "prelu"
            slope = torch.full((1,), 0.25) if prelu else None
            layers.append(Activation(options.activation_func, slope))
        if options.is_layer_norm:
            # The WebUI begins norms so, whatever the weights begin with.
            norm = torch.empty(outputs).normal_(0, 0.01, generator=generator)
            layers.append(LayerNorm(norm, torch.zeros(outputs)))
    return tuple(layers)


def _begun(shape: tuple[int, int], way: str, generator: torch.Generator) -> Tensor:
    """A weight [out, in]: after Glorot and Bengio 2010 (Xavier), He et al. 2015 (Kaiming)."""
    outputs, inputs = shape
    if way == "Normal":
        return torch.empty(shape).normal_(0, 0.01, generator=generator)
    spread = math.sqrt(2 / (inputs + outputs) if way.startswith("Xavier") else 2 / inputs)
    if way.endswith("Uniform"):
        bound = math.sqrt(3) * spread
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.empty(shape).normal_(0, spread, generator=generator)


def _dropped(mlp: Mlp, shares: tuple[float, ...]) -> Mlp:
    """The MLP with dropout where its structure says so: at the end of what follows each layer."""
    layers: list[Layer] = []
    seen = 0
    for layer in mlp:
        if isinstance(layer, Linear):
            if seen and shares and shares[seen]:
                layers.append(Dropout(shares[seen]))
            seen += 1
        layers.append(layer)
    return tuple(layers)


def _named(hypernetwork: Hypernetwork) -> Iterator[tuple[str, Tensor]]:
    """Its tensors with names of their own."""
    for width, mlps in hypernetwork.mlps.items():
        for which, mlp in zip(_WHICH, mlps, strict=True):
            for number, layer in enumerate(mlp):
                for part, tensor in vars(layer).items():
                    if isinstance(tensor, Tensor):
                        yield f"{width}.{which}.{number}.{part}", tensor


def _each(hypernetwork: Hypernetwork, change: Any) -> Hypernetwork:
    """The same with each of its tensors changed."""

    def changed(layer: Layer) -> Layer:
        tensors = {p: change(t) for p, t in vars(layer).items() if isinstance(t, Tensor)}
        return replace(layer, **tensors)

    mlps = {
        width: (tuple(map(changed, keys)), tuple(map(changed, values)))
        for width, (keys, values) in hypernetwork.mlps.items()
    }
    return replace(hypernetwork, mlps=mlps)
