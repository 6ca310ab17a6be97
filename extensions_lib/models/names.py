"""Where each layer of a model lies, in every tree that holds such a model.

A layer's canonical name is its component and its module path in diffusers/transformers, e.g.
`unet.mid_block.attentions.0.proj_in` or `te1.text_model.encoder.layers.0.mlp.fc1`. Three trees
hold the same layers under other names:

- "diffusers": pipeline attribute and module path (`text_encoder.text_model…`);
- "ldm": the original code's tree, which is also the layout of single-file checkpoints;
- "forge": Forge's objects; the UNet and VAE as in ldm without a prefix, the text encoders as in
  transformers below `clip_l`, `clip_h` (SD2) or `clip_g`.

All are made in one walk over the structure, so they cannot fall out of step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from extensions_lib.models import walk
from extensions_lib.models.families import Family, Structure

Tree = Literal["diffusers", "ldm", "forge"]


@dataclass(frozen=True)
class LayerInfo:
    """What a layer is: `shape` is its weight's shape in diffusers/transformers."""

    kind: str
    """"linear", "conv", "norm" or "embedding"."""
    shape: tuple[int, ...]
    bias: bool


@dataclass(frozen=True)
class Place:
    """Where a layer's weight lies in a tree."""

    path: str
    """Dotted path of the module in the whole tree."""
    rows: slice | None = None
    """The part of a fused attention weight that is this layer; None: all of it."""
    parameter: str = "weight"
    """Name of the parameter in that module; some OpenCLIP weights are bare parameters."""
    transposed: bool = False
    """Whether the parameter is the transpose of the layer's weight (OpenCLIP text_projection)."""
    root: str = ""
    """The leading part of `path` that leads to the component's own module."""
    shape: tuple[int, ...] = ()
    """Shape of this layer's weight as it lies there (of its rows, if it is a part)."""

    @property
    def within(self) -> str:
        """Path of the module below the component's own module."""
        return self.path[len(self.root) :].lstrip(".")

    @property
    def key(self) -> str:
        """State-dict key of the weight."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter

    @property
    def bias_key(self) -> str:
        """State-dict key of the bias, for a layer that has one."""
        return f"{self.path}.{self.parameter.replace('weight', 'bias')}"


def canonical_layers(structure: Structure) -> dict[str, LayerInfo]:
    """Every linear, convolution, norm and embedding of the UNet, text encoders and VAE."""
    return {
        canonical: LayerInfo(row.kind, row.shape, row.bias)
        for canonical, _, row in _rows(structure)
    }


def places(structure: Structure, tree: Tree) -> dict[str, Place]:
    """Canonical name to place, one to one.

    Forge leaves out the layers that SD2 never runs; the other trees have every layer.
    """
    found: dict[str, Place] = {}
    for canonical, component, row in _rows(structure):
        if tree == "forge" and row.unused:
            continue
        root = component_root(structure, component, tree)
        # Forge keeps ldm's UNet and VAE, and transformers' text encoders.
        if tree == "ldm" or (tree == "forge" and component in ("unet", "vae")):
            local, shape = row.ldm, row.ldm_shape or row.shape
            rows, parameter, transposed = row.rows, row.parameter, row.transposed
        else:
            local, shape = row.name, row.shape
            rows, parameter, transposed = None, "weight", False
        path = ".".join(part for part in (root, local) if part)
        found[canonical] = Place(path, rows, parameter, transposed, root, shape)
    return found


def checkpoint_shapes(structure: Structure) -> dict[str, tuple[int, ...]]:
    """Every key of a complete single-file checkpoint of this structure, with its shape."""
    layers = canonical_layers(structure)
    found: dict[str, tuple[int, ...]] = {}
    for canonical, place in places(structure, "ldm").items():
        fused = 1 if place.rows is None else 3
        found[place.key] = (place.shape[0] * fused, *place.shape[1:])
        if layers[canonical].bias:
            found[place.bias_key] = (place.shape[0] * fused,)
    return found


def component_root(structure: Structure, component: str, tree: Tree) -> str:
    """The path in `tree` of the module that is a component ("unet", "te1", "te2", "vae")."""
    if tree == "diffusers":
        return {"te1": "text_encoder", "te2": "text_encoder_2"}.get(component, component)
    family, refiner = structure.family, structure.text_components == ("te2",)
    if tree == "forge":
        first = "clip_h" if family is Family.SD2 else "clip_l"
        return {"te1": f"{first}.transformer", "te2": "clip_g.transformer"}.get(component, "")
    first = {
        Family.SD1: "cond_stage_model.transformer",
        Family.SD2: "cond_stage_model.model",
        Family.SDXL: "conditioner.embedders.0.transformer",
    }[family]
    return {
        "unet": "model.diffusion_model",
        "vae": "first_stage_model",
        "te1": first,
        "te2": f"conditioner.embedders.{0 if refiner else 1}.model",
    }[component]


def component_of(canonical: str) -> str:
    """The component of a canonical name: "unet", "te1", "te2" or "vae"."""
    return canonical.partition(".")[0]


@lru_cache(maxsize=16)
def unet_blocks(structure: Structure) -> dict[str, str]:
    """Layer of the UNet -> its block by the original numbering: IN00 …, M00, OUT00 ….

    What lies in no block (time embedding, output) is not in it.
    """
    sides = {"input_blocks": "IN", "output_blocks": "OUT"}
    found: dict[str, str] = {}
    for canonical, component, row in _rows(structure):
        side, _, rest = row.ldm.partition(".")
        if component == "unet" and side in sides:
            found[canonical] = f"{sides[side]}{int(rest.partition('.')[0]):02d}"
        elif component == "unet" and side == "middle_block":
            found[canonical] = "M00"
    return found


@lru_cache(maxsize=8)
def named_blocks(structure: Structure) -> Mapping[str, tuple[str | None, tuple[str, str]]]:
    """Layer -> its block, and the names that a choice of layers may mean it by.

    The block is "" for a layer of the UNet that lies in none, and None outside of the UNet.
    """
    block = unet_blocks(structure)
    return {
        layer: (block.get(layer, "") if component_of(layer) == "unet" else None, (layer, at.within))
        for layer, at in places(structure, "ldm").items()
    }


def flat(canonical: str, family: Family = Family.SD1) -> str:
    """The layer's name in kohya's network files: `lora_unet_…`, `lora_te_…`, `lora_te1_…`.

    SD1 and SD2 call their text encoder `te`; SDXL numbers its two.
    """
    component, _, path = canonical.partition(".")
    if component == "te1" and family is not Family.SDXL:
        component = "te"
    return f"lora_{component}_{path.replace('.', '_')}"


def flat_ldm(canonical: str, structure: Structure) -> str:
    """The second kohya name of a UNet layer, after ldm: `lora_unet_input_blocks_4_1_…`.

    Raises:
        KeyError: not a UNet layer of this structure.
    """
    return _flat_ldm_names(structure)[canonical]


def kohya_names(structure: Structure) -> dict[str, str]:
    """Every flat name that network files use for the layers of a structure, to canonical names.

    Holds both UNet namings, and for a single text encoder both `lora_te_` and `lora_te1_`.
    VAE layers, which no trainer of this format touches, are in it as `lora_vae_…`.
    """
    table = {
        flat(canonical, structure.family): canonical for canonical in canonical_layers(structure)
    }
    table.update({name: canonical for canonical, name in _flat_ldm_names(structure).items()})
    if structure.family is not Family.SDXL:
        for canonical in canonical_layers(structure):
            if component_of(canonical) == "te1":
                table[flat(canonical, Family.SDXL)] = canonical
    return table


def _flat_ldm_names(structure: Structure) -> dict[str, str]:
    return {
        canonical: f"lora_unet_{row.ldm.replace('.', '_')}"
        for canonical, component, row in _rows(structure)
        if component == "unet"
    }


@lru_cache(maxsize=16)
def _rows(structure: Structure) -> tuple[tuple[str, str, walk.Row], ...]:
    return tuple(_walk(structure))


def _walk(structure: Structure) -> Iterator[tuple[str, str, walk.Row]]:
    for row in walk.unet_rows(structure.unet):
        yield f"unet.{row.name}", "unet", row
    for component, text in zip(structure.text_components, structure.texts, strict=True):
        for row in walk.text_rows(text):
            yield f"{component}.{row.name}", component, row
    if structure.vae is not None:
        for row in walk.vae_rows(structure.vae):
            yield f"vae.{row.name}", "vae", row
