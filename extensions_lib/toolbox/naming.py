"""The names that other programs want in a network file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from extensions_lib.files.comfyui import held_outputs
from extensions_lib.files.recognise import layers_of
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.names import component_of, component_root, flat, places
from extensions_lib.toolbox.weighted import usual
from extensions_lib.toolbox.work import ToolProblem

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.adapters import Adapter, LoRA
    from extensions_lib.files.networks import Network

KOHYA, KOHYA_DIFFUSERS, PEFT, COMFYUI = "kohya", "kohya_diffusers", "peft", "comfyui"
NAMINGS = (KOHYA, KOHYA_DIFFUSERS, PEFT, COMFYUI)
Named = tuple[dict[str, "Tensor"], dict[str, str]]  # tensors, and metadata that belong to them


def named(network: Network, naming: str) -> Named:
    """A network's tensors under the names of a scheme, embeddings in it too.

    kohya: `lora_unet_…`, SDXL's UNet after ldm; kohya_diffusers: all after diffusers; peft: as
    diffusers saves a LoRA, with alphas in the metadata; comfyui: `diffusion_model.…`.
    Raises ToolProblem for a layer that the scheme has no name or form for.
    """
    if naming == PEFT:
        tensors, metadata = _peft(network)
    else:
        spelled = _spelling(naming, network.family)
        metadata = {}
        tensors = {
            f"{spelled(layer)}.{part}": tensor
            for layer, adapter in network.adapters.items()
            for part, tensor in _meant(naming, adapter.tensors()).items()
        }
    for name, parts in network.embeddings.items():
        tensors |= {f"bundle_emb.{name}.{part}": tensor for part, tensor in parts.items()}
    return tensors, metadata


def _meant(naming: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of a layer as the programs that have the naming understand them."""
    if naming != COMFYUI:
        return parts
    held = held_outputs({name: tuple(part.shape) for name, part in parts.items()})
    return {**parts, "alpha": parts["alpha"] * held} if held else parts


def _spelling(naming: str, family: Family | None) -> Callable[[str], str]:
    if naming == KOHYA:
        from extensions_lib.files.networks import flat_name

        return lambda layer: flat_name(layer, family)
    if naming == KOHYA_DIFFUSERS:
        return lambda layer: flat(layer, _flat_family(layer, family))
    structure = usual(family)
    return lambda layer: _comfyui(layer, structure)


def _flat_family(layer: str, family: Family | None) -> Family:
    return family or (Family.SDXL if layer.startswith("te2.") else Family.SD1)


def _comfyui(layer: str, structure: Structure) -> str:
    """ComfyUI's own name: that of the weight in its model, without `.weight`."""
    component, _, path = layer.partition(".")
    if component.startswith("te"):
        return f"text_encoders.{component_root(structure, component, 'forge')}.{path}"
    place = _ldm_places(structure).get(layer)
    if component != "unet" or place is None:
        raise ToolProblem(f"{layer}: ComfyUI has no name for it in {structure.family}")
    return place.removeprefix("model.")


def _ldm_places(structure: Structure) -> Mapping[str, str]:
    return {layer: place.path for layer, place in places(structure, "ldm").items()}


# --- PEFT -------------------------------------------------------------------------------------


def _peft(network: Network) -> Named:
    """lora_A and lora_B by diffusers' paths; ranks and alphas as PEFT's config has them."""
    structure = usual(network.family)
    shapes = {layer: info.shape for layer, info in layers_of(structure).items()}
    tensors: dict[str, Tensor] = {}
    found: dict[str, dict[str, tuple[int, float]]] = {}
    dora: Counter[str] = Counter()
    for layer, adapter in network.adapters.items():
        lora, magnitude = _plain_lora(layer, adapter)
        root = component_root(structure, component_of(layer), "diffusers")
        path = layer.partition(".")[2]
        up, down = _shaped(lora, shapes.get(layer, lora.shape))
        tensors[f"{root}.{path}.lora_A.weight"] = down
        tensors[f"{root}.{path}.lora_B.weight"] = up
        if magnitude is not None:
            ones = [1] * (down.dim() - 2)
            tensors[f"{root}.{path}.lora_magnitude_vector"] = (
                magnitude.reshape(1, -1, *ones) if ones else magnitude.reshape(-1)
            )
            dora[root] += 1
        found.setdefault(root, {})[path] = (lora.rank, lora.scale * lora.rank)
    config: dict[str, Any] = {}
    for root, layers in found.items():
        if dora[root] not in (0, len(layers)):
            raise ToolProblem(
                f"PEFT has DoRA in all layers of {root} or in none, this network in"
                f" {dora[root]} of {len(layers)}"
            )
        config |= {f"{root}.{key}": text for key, text in _config(layers, dora[root] > 0).items()}
    return tensors, {"lora_adapter_metadata": json.dumps(config), "format": "pt"}


def _plain_lora(layer: str, adapter: Adapter) -> tuple[LoRA, Tensor | None]:
    """The LoRA, and DoRA's magnitude of outputs. Raises ToolProblem for another kind."""
    from extensions_lib.adapters import DoRA, LoRA

    inner: Adapter = adapter
    magnitude: Tensor | None = None
    if isinstance(adapter, DoRA):
        inner, magnitude = adapter.inner, adapter.magnitude
        if magnitude.shape[0] != magnitude.numel():
            raise ToolProblem(
                f"{layer}: its DoRA is of inputs, PEFT's of outputs; convert it with"
                " --dora-axis out"
            )
    if not isinstance(inner, LoRA):
        raise ToolProblem(
            f"{layer}: is {type(inner).__name__}; diffusers reads LoRA alone, which resize makes"
            " of it"
        )
    return inner, magnitude


def _shaped(lora: LoRA, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(up, down) as the layer's own module has them; a Tucker core is multiplied out."""
    plain = lora if lora.mid is None else lora.plain(lora.down.dtype)
    kernel = list(shape[2:])
    up = plain.up.reshape(*plain.up.shape[:2], *[1] * len(kernel))
    return up, plain.down.reshape(len(plain.down), plain.down.shape[1], *kernel)


def _config(layers: Mapping[str, tuple[int, float]], dora: bool) -> dict[str, Any]:
    """PEFT's LoraConfig: the most frequent rank and alpha, and patterns for the others."""
    rank, alpha = (Counter(values).most_common(1)[0][0] for values in zip(*layers.values(), strict=True))  # fmt: skip  # noqa: E501
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: r for path, (r, _) in layers.items() if r != rank},
        "alpha_pattern": {path: a for path, (_, a) in layers.items() if a != alpha},
        "target_modules": sorted(layers),
        "use_dora": dora,
        "lora_bias": False,
        "bias": "none",
    }
