"""Forge: the checkpoint that it has loaded, and networks merged by its own patchers.

Forge keeps a model in parts (UNet, text encoders, VAE), moves them in and out of the GPU as memory
asks, and merges a patcher's patches whenever it loads that part. So networks are handed to its
patchers, with our merge as the way to compute them: every kind of network that we read, also on
weights that it holds packed, and at the moment that it chooses.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import NetworkProblem
from extensions_lib.hosts.networks import InForce
from extensions_lib.hosts.webui_checkpoint import noted, structure_by
from extensions_lib.models.built import VAE_SCALE
from extensions_lib.models.loaded import LoadedModel, NoiseSchedule
from extensions_lib.models.names import component_of
from extensions_lib.models.structures import structure_of_parts
from extensions_lib.models.trainable import Trainable
from extensions_lib.patching import ApplyReport, Planner, Wanted
from extensions_lib.patching.attach import Recipe, write
from extensions_lib.patching.by_group import Anew
from extensions_lib.patching.layout import Layout
from extensions_lib.patching.plan import plain_shape
from extensions_lib.patching.unmerged import Unmerged
from extensions_lib.patching.wanted import combined, identity

KIND = "crucible"
"""The name under which Forge's merging knows our way to compute a weight."""
_NOTHING = str([])  # Forge's own word for no networks


def loaded_model(engine: Any) -> LoadedModel:
    """Forge's `shared.sd_model` as Crucible sees it; nothing is copied or moved.

    Raises:
        NetworkProblem: it is no SD1, SD2 or SDXL model (Flux, Stable Diffusion 3, …), or none is
            loaded yet.
    """
    about = noted(engine)
    objects = getattr(engine, "forge_objects_original", None)
    if objects is None:
        raise NetworkProblem("Forge has not loaded a checkpoint yet: make a picture first")
    texts = {key: part.transformer for key, part in _encoders(objects.clip.cond_stage_model)}
    unet, vae = objects.unet.model.diffusion_model, objects.vae.first_stage_model
    shapes = {
        **_shapes(unet, "model.diffusion_model."),
        **_shapes(vae, "first_stage_model."),
    }
    of_texts = {key: _shapes(part) for key, part in texts.items()}
    structure = structure_by(lambda: structure_of_parts(shapes, of_texts, label=about["name"]))
    predictor = objects.unet.model.predictor
    kept = getattr(predictor, "alphas_cumprod", None)
    signal = 1 / (1 + predictor.sigmas**2) if kept is None else kept
    weight = next(unet.parameters())
    return LoadedModel(
        **about,
        structure=structure,
        unet=unet,
        text_encoders=tuple(texts.values()),
        vae=vae,
        tree="forge",
        schedule=NoiseSchedule(
            signal.detach().float().cpu(),
            "v_prediction" if predictor.prediction_type == "v_prediction" else "epsilon",
        ),
        device=weight.device,
        dtype=weight.dtype,
        vae_scale=VAE_SCALE[structure.family],
    )


def _encoders(text_encoders: nn.Module) -> list[tuple[str, Any]]:
    """The text encoders in the order of their components, by Forge's names."""
    order = {"clip_l": 0, "clip_h": 0, "clip_g": 1}
    return sorted(text_encoders.named_children(), key=lambda part: order.get(part[0], 2))


def _shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes = {key: held_shape(parameter) for key, parameter in module.named_parameters()}
    return {f"{prefix}{key}": shape for key, shape in shapes.items() if not isinstance(shape, str)}


def held_shape(weight: Tensor | None) -> tuple[int, ...] | str:
    """The shape of a weight, also where Forge holds it packed (GGUF, bitsandbytes)."""
    state = getattr(weight, "quant_state", None)
    packed = getattr(weight, "real_shape", None) or getattr(state, "shape", None)
    return plain_shape(weight) if packed is None else tuple(packed)


@dataclass
class _Made:
    """Patchers with a set of networks on them, and what they were made from and report."""

    of: Any
    unet: Any
    clip: Any
    layout: Layout
    merged: str
    report: ApplyReport


class PatcherSet:
    """Hands the wanted networks to Forge's patchers; its memory management merges them.

    The patchers of the checkpoint itself are never changed: clones carry the networks. While one
    set stays wanted, the same clones are used, so that nothing is merged twice. What is computed
    beside layers stands around their forward, as long as the set is in force.
    """

    def __init__(self, engine: Any, model: LoadedModel) -> None:
        self._engine, self._model = engine, model
        self._planner = Planner(model, held_shape, _device)
        self._beside = Unmerged(Anew, lambda _: None)
        self._identity: list[tuple[object, ...]] = []
        self._made: _Made | None = None
        self._merged = ""  # what the UNet has merged, or will have when it is loaded
        offer_merge()

    def apply(self, wanted: Sequence[Wanted]) -> ApplyReport:
        """Makes exactly this set the one that Forge samples and encodes with from now on."""
        started = time.perf_counter()
        wanted = combined(wanted)
        if not wanted:
            self.park()
            return ApplyReport()
        original = self._engine.forge_objects_original
        made, same = self._made, identity(wanted) == self._identity
        if made is None or made.of is not original.unet or not same:
            made = self._make(wanted)
        self._stand(made.layout)
        self._take(made.unet, made.clip, f"{KIND} {made.merged}")
        self._made, self._identity, self._merged = made, identity(wanted), made.merged
        made.report.seconds = time.perf_counter() - started
        return made.report

    def encode(self, wanted: Sequence[Wanted]) -> None:
        """The set as it is for the text encoders; what the UNet has stays."""
        clip = self._make(combined(wanted)).clip
        self._engine.forge_objects.clip = clip
        self._engine.forge_objects_after_applying_lora.clip = clip

    def change(self, wanted: Sequence[Wanted]) -> None:
        """Merges the set into the UNet at once, where Forge itself merges only when it loads.

        Where nothing changes in what is merged, only the numbers beside the layers do.
        """
        made = self._make(combined(wanted), self._planner.next_layout)
        self._stand(made.layout)
        if made.merged == self._merged:
            return
        sampling = self._engine.forge_objects.unet
        others = {key: p for key, p in sampling.lora_patches.items() if not key[0].startswith(KIND)}
        # It compares names with those of what is merged, and does nothing where they agree.
        sampling.lora_loader.refresh({**others, **made.unet.lora_patches}, sampling.offload_device)
        self._merged = made.merged

    def rows(self, pictures: Sequence[int]) -> None:
        """Say of which picture each sample is that the UNet is asked about next."""
        self._beside.rows.set(pictures)

    def park(self) -> None:
        """Leaves Forge with the checkpoint's own patchers; a set that comes back is at hand."""
        self._beside.park()
        original = self._engine.forge_objects_original
        self._take(original.unet, original.clip, _NOTHING)

    def clear(self) -> None:
        """Parks, and forgets the set."""
        self.park()
        self._beside.clear()
        self._made, self._identity, self._merged = None, [], ""
        self._planner.keep_moved([])

    def release(self) -> None:
        """Clears; merged weights are Forge's memory."""
        self.clear()

    def _stand(self, layout: Layout) -> None:
        # Forge calls from inference mode: what is made here is to be of use outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._beside.take_out_others(layout)
            self._beside.bring(layout)

    def _take(self, unet: Any, clip: Any, name: str) -> None:
        engine = self._engine
        engine.forge_objects.unet, engine.forge_objects.clip = unet, clip
        engine.forge_objects_after_applying_lora = engine.forge_objects.shallow_copy()
        # By this name its builtin handler sees that its own set is not in force.
        engine.current_lora_hash = name

    def _make(
        self, wanted: Sequence[Wanted], plan: Callable[[Sequence[Wanted]], Layout] | None = None
    ) -> _Made:
        original = self._engine.forge_objects_original
        with torch.inference_mode(False), torch.no_grad():
            layout = (plan or self._planner.layout)(wanted)
        self._planner.keep_moved(wanted)
        notes, unfit = _packed_as_one(layout, wanted), list(layout.unfit)
        patches: dict[str, dict[str, Any]] = {"unet": {}, "clip": {}}
        for recipe in layout.recipes.values():
            canonical = str(recipe.signature[0][0])
            part, key = self._key(canonical, recipe.name)
            if part is None or recipe.original()[1]:
                why = "Forge patches no VAE" if part is None else "it has no bias to be changed"
                unfit.append(f"{wanted[0].network.name}: {canonical}: {why}")
            else:
                patches[part][key] = (KIND, (recipe,))
        unet, clip = original.unet.clone(), original.clip.clone()
        held = self._online()
        for patcher, part in ((unet, "unet"), (clip, "clip")):
            name = f"{KIND} {_digest(patches[part])}"
            patcher.add_patches(filename=name, patches=patches[part], online_mode=held)
        names = [each.network.name for each in wanted]
        count = len(layout.recipes) + len(layout.sides) + len(layout.groups)
        report = ApplyReport(names, count, count, unfit, notes)
        merged = _digest(patches["unet"])
        return _Made(original.unet, unet, clip, layout, merged, report)

    def _key(self, canonical: str, name: str) -> tuple[str | None, str]:
        """The patcher that holds a layer, and the name there of its weight or bias."""
        component = component_of(canonical)
        key = f"{self._model.layers[canonical].path}.{name}"
        if component == "unet":
            return "unet", f"diffusion_model.{key}"
        return (None if component == "vae" else "clip"), key

    def _online(self) -> bool:
        """Whether Forge is set to merge anew in each step, for weights that it holds packed."""
        from backend.args import dynamic_args

        plain = (torch.float32, torch.float16, torch.bfloat16)
        stored = self._engine.forge_objects_original.unet.model.storage_dtype
        return bool(dynamic_args.get("online_lora", False)) and stored not in plain


def _digest(patches: Mapping[str, Any]) -> str:
    """A short name of what is merged into a part: Forge merges anew only when a name changes."""
    content = sorted((key, repr(payload[0].signature)) for key, (_, payload) in patches.items())
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _packed_as_one(layout: Layout, wanted: Sequence[Wanted]) -> list[str]:
    """Gives packed layers that are to have a weight for each picture that of the first.

    Forge alone unpacks them, when it merges. Sentences on the networks; a bias that is not there is
    left out with them.
    """
    layers: set[str] = set()
    for at, groups in list(layout.groups.items()):
        if all(_plain(recipe) for each in groups.recipes for recipe in each.values()):
            continue
        for recipe in groups.recipes[groups.of[0]].values():
            layout.recipes[recipe.place] = recipe
        signed = [s for each in groups.recipes for r in each.values() for s in r.signature]
        layers.update(str(signature[0]) for signature in signed)
        del layout.groups[at]
    found = {
        each.network.name: len(layers & each.network.adapters.keys())
        for each in wanted
        if isinstance(each.unet, tuple)
    }
    return [
        f"{name}: {count} layers have the first picture's weight in the whole batch. Of layers "
        "that Forge holds packed, only those with nothing but LoRA can have one for each picture."
        for name, count in found.items()
        if count
    ]


def _plain(recipe: Recipe) -> bool:
    """Whether the parameter is there and holds its numbers as they are."""
    found = recipe.module._parameters.get(recipe.name)
    return found is not None and held_shape(found) == plain_shape(found)


def _device() -> str:
    """The type of the device on which Forge samples; a model may lie elsewhere until then."""
    from backend.memory_management import get_torch_device

    return str(get_torch_device().type)


def offer_merge() -> None:
    """Tells Forge's merging how to compute a weight with our networks."""
    from backend.patcher import lora

    lora.extra_weight_calculators[KIND] = merge_recipe


def merge_recipe(weight: Tensor, strength: float, payload: tuple[Recipe]) -> Tensor:
    """A weight of the model with a recipe's networks on it, as Forge's merging calls for it.

    `weight` is a float32 copy on the device of the merging; the answer is a new tensor.
    """
    (recipe,) = payload
    out = torch.empty_like(weight)
    write(out, weight, recipe.to(weight.device, strength))
    return out


def forget_builtin() -> None:
    """Takes the builtin handler's networks off, where it has any in force."""
    import sys

    from modules import sd_models

    builtin = sys.modules.get("networks")
    loaded = getattr(builtin, "loaded_networks", None)
    if loaded:
        loaded.clear()
    engine = sd_models.model_data.sd_model
    original = getattr(engine, "forge_objects_original", None)
    if original is not None:
        engine.forge_objects_after_applying_lora = original.shallow_copy()
        engine.current_lora_hash = _NOTHING


class Forge:
    """Forge as `hosts.webui` asks for it."""

    name = "Forge"

    def loaded_model(self, sd_model: Any) -> LoadedModel:
        return loaded_model(sd_model)

    def in_force(self, sd_model: Any, model: LoadedModel) -> InForce:
        return PatcherSet(sd_model, model)

    def forget_builtin(self) -> None:
        forget_builtin()

    def take_over_more(self, session: Any) -> None:
        """Hypernetworks, whose tags Forge reads and does nothing with."""
        from extensions_lib.hosts.webui_hypernetworks import take_over

        take_over(session, session.cache)

    def bare(self, sd_model: Any) -> None:
        """Forge leaves merged weights in place until it loads a part for another order."""
        from backend.memory_management import load_models_gpu

        original = sd_model.forge_objects_original
        load_models_gpu([original.unet, original.clip.patcher])

    def training_on(self, sd_model: Any, model: LoadedModel) -> AbstractContextManager[Trainable]:
        from extensions_lib.hosts.forge_trainable import training_on

        return training_on(sd_model, model)

    def current(self) -> Any:
        from modules import sd_models

        return sd_models.forge_model_reload()[0]

    def sampling(self) -> Any:
        return None
