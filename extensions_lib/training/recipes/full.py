"""The checkpoint itself is trained: full fine-tuning, and DreamBooth with regularisation pictures.

What learns are copies of the weights in fp32; they are in the model for the time of a turn, rounded
to the precision of the model's own where that is lower. The model's own weights are never written
to, and come back as the very same objects. DreamBooth: Ruiz et al. 2022 (arXiv 2208.12242); its
regularisation pictures and their weight are the objective's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.atomic import write_text
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.files.dtypes import safetensors_name
from extensions_lib.files.streams import write_stream
from extensions_lib.files.weights import Weights
from extensions_lib.models.layouts import Part, pieces, put_together
from extensions_lib.models.names import component_of
from extensions_lib.models.trainable import Trainable
from extensions_lib.patching.plan import plain_shape
from extensions_lib.training.networks import of_block, rate_of
from extensions_lib.training.option_groups import NetworkOptions
from extensions_lib.training.recipe_options import FullTraining
from extensions_lib.training.recipes.prompts import conditioning_of
from extensions_lib.training.step import Batch, diffusion_losses


@dataclass
class _Copy:
    """A parameter of the model, everywhere that it lies, and its copy that learns."""

    name: str
    trained: nn.Parameter
    places: list[tuple[nn.Module, str]]
    original: nn.Parameter | None = None  # while the copy is in its place

    def put_in(self) -> None:
        """The copy as it is now, gradients reaching it."""
        if self.original is None:
            # asked anew: a host that moves its weights may hold another object by now
            module, name = self.places[0]
            self.original = module._parameters[name]
            assert self.original is not None
        self._put(self.trained.to(self.original.dtype))

    def take_out(self) -> None:
        """The original."""
        if self.original is not None:
            self._put(self.original)
            self.original = None

    def _put(self, value: Tensor) -> None:
        for module, name in self.places:
            module._parameters[name] = value  # type: ignore[assignment]  # rounded: no Parameter


@dataclass(frozen=True)
class _Layer:
    """Where a layer's weight or bias is in the copy of a parameter."""

    copy: _Copy
    rows: slice | None
    transposed: bool

    def of(self, whole: Tensor) -> Tensor:
        """The layer's own, in its shape in diffusers but for ones."""
        part = whole.t() if self.transposed else whole
        return part if self.rows is None else part[self.rows]


class FullRecipe:
    """Trains the weights of `model`'s UNet and, where asked, its text encoders.

    Raises CrucibleError where nothing is trained, or a weight is held in few bits.
    """

    def __init__(self, model: Trainable, options: FullTraining, learning_rate: float) -> None:
        self.model, self.options = model, options
        self._rates = _rates(model, options, learning_rate)
        self.reads = any(component != "unet" for component in self._rates)
        self._copies: list[_Copy] = []
        self._layers: dict[tuple[str, str], _Layer] = {}
        known: dict[int, _Copy] = {}
        for canonical, place in model.loaded.layers.items():
            if component_of(canonical) not in self._rates or not self._weight(canonical):
                continue
            module, name, rows = model.loaded.layer(canonical)
            self._add(known, canonical, module, name, rows, place.transposed)
        for component in self._rates:
            for module in model.loaded.component(component).modules():
                for name, parameter in module._parameters.items():
                    if id(parameter) in known:
                        known[id(parameter)].places.append((module, name))

    def _add(
        self,
        known: dict[int, _Copy],
        canonical: str,
        module: nn.Module,
        name: str,
        rows: slice | None,
        transposed: bool,
    ) -> None:
        """Notes the weight of a layer, and its bias where it has one."""
        for part in ("weight", "bias"):
            held = module._parameters.get(name.replace("weight", part))
            if held is None or (part == "bias" and "weight" not in name):
                continue
            if isinstance(shape := plain_shape(held), str):
                raise CrucibleError(f"{canonical} cannot be trained: {shape}.")
            if id(held) not in known:
                values = held.detach().to(self.model.loaded.device, torch.float32, copy=True)
                copy = _Copy(f"{canonical}.{part}", nn.Parameter(values), [])
                known[id(held)] = copy
                self._copies.append(copy)
            turned = transposed and part == "weight"
            self._layers[canonical, part] = _Layer(known[id(held)], rows, turned)

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """As `Recipe.groups`: one for each component, and each weight of blocks in the UNet."""
        groups: dict[str, dict[str, Any]] = {}
        for copy in self._copies:
            component = component_of(copy.name)
            weight = self._weight(copy.name.rpartition(".")[0])
            name = component if weight == 1 else f"{component} × {weight:g}"
            entry = {"params": [], "lr": self._rates[component] * weight, "name": name}
            groups.setdefault(name, entry)["params"].append(copy.trained)
        if not groups:
            raise CrucibleError("nothing is trained: block_lr_weight is 0 in every block.")
        return list(groups.values())

    def _weight(self, canonical: str) -> float:
        """What a layer's rate is multiplied by."""
        if component_of(canonical) != "unet":
            return 1.0
        return float(of_block(self.model.loaded, canonical, self.options, "block_lr_weight", 1.0))

    def tensors(self) -> dict[str, Tensor]:
        """As `Recipe.tensors`."""
        return {copy.name: copy.trained for copy in self._copies}

    def put_in(self) -> None:
        """As `Recipe.put_in`."""
        with torch.no_grad():
            for copy in self._copies:
                copy.put_in()

    def take_out(self) -> None:
        """As `Recipe.take_out`."""
        for copy in self._copies:
            copy.take_out()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As `Recipe.losses`; inside `put_in` and `take_out`."""
        for copy in self._copies:  # rounded anew, with the way back to what is rounded
            copy.put_in()
        conditioning = conditioning_of(self.model, batch, self.options, learning=self.reads)
        return diffusion_losses(self.model, batch, conditioning, self.options, generator)

    def after_step(self) -> None:
        """As `Recipe.after_step`: what the model holds is rounded from what was learnt."""
        self.put_in()

    def without_dropout(self) -> AbstractContextManager[None]:
        """As `Recipe.without_dropout`: there is none."""
        return nullcontext()

    def save(
        self,
        path: Path,
        metadata: Mapping[str, str],
        dtype: torch.dtype | None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """As `Recipe.save`: a checkpoint with the keys of the base's file, and its yaml beside it.

        What is not trained is the base's; its averaged (EMA) weights and other leftovers are left
        out. One tensor at a time is in memory. `dtype` None: each as it is in the base.
        Raises FileProblem: also where the base's file is gone.
        """
        base_path = self.model.loaded.path
        if base_path is None or path.suffix.lower() != ".safetensors":
            why = "the checkpoint was not loaded from a file" if base_path is None else (
                "a checkpoint is written as .safetensors"
            )  # fmt: skip
            raise FileProblem(f"{path}: cannot be written: {why}.")
        with Weights(base_path) as base:
            making = _Making(base, self._layers, values, dtype)
            write_stream(path, making.plan(), making, {**_kept(base), **metadata})
        config = base_path.with_suffix(".yaml")
        if config.is_file() and config != path.with_suffix(".yaml"):
            write_text(path.with_suffix(".yaml"), config.read_text(encoding="utf-8"))


class _Making:
    """Makes the tensors of the checkpoint that is saved, by their names in the base's file."""

    def __init__(
        self,
        base: Weights,
        layers: Mapping[tuple[str, str], _Layer],
        values: Mapping[str, Tensor] | None,
        dtype: torch.dtype | None,
    ) -> None:
        self._base, self._layers, self._values, self._dtype = base, layers, values, dtype
        self._standard = {old: key for key, old in base.keys.names.items()}
        self._pieces = pieces(base.structure)

    def plan(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> dtype and shape."""
        keys, named = self._base.keys, self._dtype and safetensors_name(self._dtype)
        infos = {name: keys.header.tensors[name] for name in (*keys.names.values(), *keys.markers)}
        return {
            name: (named if named and self._changes(name) else info.dtype, tuple(info.shape))
            for name, info in infos.items()
        }

    def __call__(self, name: str) -> Tensor:
        """The tensor that has this name."""
        stored = self._base.raw(name)
        dtype = self._dtype if self._dtype and self._changes(name) else stored.dtype
        own = self._pieces[self._standard[name]] if name in self._standard else ()
        if not any(self._of(part) for part in own):
            return stored.to(dtype)
        shape = tuple(stored.shape)
        return put_together(own, [self._now(part, stored) for part in own], shape).to(dtype)

    def _changes(self, name: str) -> bool:
        """Whether its precision is what is asked for: that of numbers of the model."""
        return name in self._standard and self._base.keys.header.tensors[name].dtype in _FLOATS

    def _of(self, part: Part) -> _Layer | None:
        return self._layers.get((part.layer, part.name.rpartition(".")[2]))

    def _now(self, part: Part, stored: Tensor) -> Tensor:
        """A part as it is learnt, fp32 on the CPU; as it was where it is not trained."""
        layer = self._of(part)
        if layer is None:
            return part.taken(stored).float()
        copy = layer.copy
        whole = copy.trained if self._values is None else self._values[copy.name]
        return layer.of(whole.detach()).float().cpu().reshape(part.shape)


_FLOATS = ("F64", "F32", "F16", "BF16")


def _kept(base: Weights) -> dict[str, str]:
    """What the base's file says of itself that still holds."""
    told = base.keys.header.metadata
    return {k: text for k, text in told.items() if not k.startswith(("sshs_", "modelspec.hash"))}


def _rates(model: Trainable, options: FullTraining, learning_rate: float) -> dict[str, float]:
    """The learning rate of each component that is trained."""
    wanted = ["unet"] if options.train_unet else []
    if options.train_text_encoder:
        wanted += model.loaded.structure.text_components
    said = NetworkOptions(unet_lr=options.unet_lr, text_encoder_lr=options.text_encoder_lr)
    rates = {each: rate_of(model.loaded, each, said, learning_rate) for each in wanted}
    found = {component: rate for component, rate in rates.items() if rate > 0}
    if not found:
        raise CrucibleError(
            "nothing is trained: train_unet and train_text_encoder are off, or their rates 0."
        )
    return found
