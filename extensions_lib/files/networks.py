"""Networks: files of adapters, read and written."""

from __future__ import annotations

import datetime
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.adapters import Adapter, AdapterError, adapter_from
from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import identity
from extensions_lib.files.comfyui import SCHEME as COMFYUI
from extensions_lib.files.comfyui import held_outputs, with_kernel
from extensions_lib.files.foreign import unsupported, use
from extensions_lib.files.hashes import network_hashes
from extensions_lib.files.keys import KNOWN, Grouped, group
from extensions_lib.files.peft_config import PeftConfig, read_config
from extensions_lib.files.peft_parts import PEFT_ALONE, PeftMistake, standard_peft
from extensions_lib.files.recognise import (
    OWN,
    family_of,
    kind_of,
    layers_of,
    made_for_others,
    missing_part,
    names_one_text_encoder,
    rank_of,
    standard_parts,
    without_kind,
)
from extensions_lib.files.safe import read_file, serialised, write_safetensors
from extensions_lib.models.families import SDXL_BASE, Family, Structure
from extensions_lib.models.names import flat, flat_ldm
from extensions_lib.models.strangers import describe, is_network

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Key = tuple[str, int, int]


@dataclass
class Network:
    """The adapters of one file by canonical layer, and what of the file was not understood."""

    name: str
    path: Path
    adapters: dict[str, Adapter]
    unmatched: list[str] = field(default_factory=list)  # layers or keys with no meaning here
    problems: list[str] = field(default_factory=list)  # "layer: what is wrong", left out
    notes: list[str] = field(default_factory=list)  # what was decided; nothing is left out
    metadata: dict[str, str] = field(default_factory=dict)
    family: Family | None = None
    key: Key = ("", 0, 0)  # content identity: absolute path, size, time of the last change in ns
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Textual inversions that came along: name -> part as it is named there -> vectors."""

    @property
    def kinds(self) -> Counter[str]:
        """Algorithm -> number of layers."""
        return Counter(adapter.kind for adapter in self.adapters.values())

    @property
    def ranks(self) -> Counter[int]:
        """Rank -> number of layers, of the algorithms that have ranks."""
        ranks = (adapter.rank for adapter in self.adapters.values())
        return Counter(rank for rank in ranks if rank is not None)


def network_key(path: str | os.PathLike[str]) -> Key:
    """Content identity of a file: an edited file has another. Raises FileProblem."""
    try:
        return (os.path.abspath(path), *identity(path))
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}); check the name") from None


def read_network(
    path: str | os.PathLike[str], *, structure: Structure | None = None, name: str | None = None
) -> Network:
    """Reads a network; its tensors keep their dtype and are mapped, not copied (safetensors).

    structure: of the loaded model, if its layer names go beyond those of SD1, SD2 and SDXL.
    Layers that cannot be used are listed in `unmatched` and `problems`; the others load.
    Raises FileProblem if nothing in the file can be used.
    """
    path = Path(path)
    key = network_key(path)  # before the read: a change while reading gives another key later
    tensors, metadata = read_file(path)
    network = Network(name or path.stem, path, {}, metadata=metadata, key=key)
    network.embeddings = _marked_embeddings(tensors, metadata)
    for token in network.embeddings:
        del tensors[token]
    grouped = group(tensors, structure, shape=_shape)
    network.embeddings |= grouped.embeddings
    network.unmatched += grouped.unmatched
    network.problems += grouped.problems
    network.notes += grouped.notes
    foreign = made_for_others(grouped)
    if foreign:
        instead = use(foreign, path.stem) or "networks for SD1, SD2 and SDXL can be used"
        raise FileProblem(f"{path}: was made for {foreign}; {instead}")
    for layer, parts in grouped.layers.items():
        grouped.layers[layer] = _standard(parts)
    _add_peft_alphas(network, grouped, _bring_over_peft(network, grouped, structure))
    for layer, parts in grouped.layers.items():
        grouped.layers[layer] = _bring_over_comfyui(layer, parts, grouped, structure)
    for layer, parts in grouped.layers.items():
        _add_layer(network, layer, parts, grouped.spelled[layer])
    if not network.adapters and not network.embeddings:
        raise FileProblem(f"{path}: {_nothing_usable(network, grouped, tensors)}")
    network.family = family_of(
        {
            layer: {part: _shape(tensor) for part, tensor in grouped.layers[layer].items()}
            for layer in network.adapters
        },
        one_text_encoder=names_one_text_encoder(grouped),
        loaded=structure,
    )
    return network


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _standard(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return standard_parts(parts, _shape, lambda old, new: old.reshape(new), lambda old: old.T)


def _bring_over_comfyui(
    layer: str, parts: dict[str, Tensor], grouped: Grouped[Tensor], structure: Structure | None
) -> dict[str, Tensor]:
    structures = (*((structure,) if structure else ()), *KNOWN)
    parts = with_kernel(layer, parts, structures, _shape, lambda old, new: old.reshape(new))
    held = held_outputs({name: _shape(part) for name, part in parts.items()})
    if held and grouped.schemes[layer] == COMFYUI and parts["alpha"].is_floating_point():
        return {**parts, "alpha": parts["alpha"].double() / held}
    return parts


def _marked_embeddings(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, dict[str, Tensor]]:
    """Embeddings that cloneofsimo's trainer put beside a LoRA: named by token, marked as such."""
    tokens = [name for name, text in metadata.items() if text == "<embed>" and name in tensors]
    return {token: {"emb_params": tensors[token]} for token in tokens}


def _add_layer(network: Network, layer: str, parts: dict[str, Tensor], spelled: str) -> None:
    problem = unsupported(parts) or missing_part(parts) or _no_number(parts)
    if problem:
        network.problems.append(f"{layer}: {problem}")
        return
    try:
        network.adapters[layer] = adapter_from(parts)
    except AdapterError as error:
        if kind_of(parts) is None:
            network.unmatched.append(f"{spelled} ({without_kind(parts)})")
        else:
            network.problems.append(f"{layer}: {error}")


def _no_number(parts: Mapping[str, Tensor]) -> str | None:
    """Says which factor of the whole layer is not a number, or None."""
    for name in ("alpha", "scale"):
        part = parts.get(name)
        if part is None or part.numel() != 1:
            continue
        if part.is_complex() or not math.isfinite(part):
            return f"its {name} is {part.item()}"
    return None


def _nothing_usable(
    network: Network, grouped: Grouped[Tensor], tensors: Mapping[str, Tensor]
) -> str:
    strange = {part for parts in grouped.layers.values() for part in parts} - {*OWN}
    if network.problems:
        count = len(network.problems)
        return f"none of its layers can be used; the first of {count}: {network.problems[0]}"
    if network.unmatched and 2 * len(grouped.layers) > len(network.unmatched):
        if strange:
            shown = ", ".join(sorted(strange)[:3])
            return (
                f"its layers are those of Stable Diffusion, of an algorithm unknown here ({shown})"
            )
        if is_network(tensors):
            return f"none of its layers can be used; the first is {network.unmatched[0]}"
    if network.unmatched and is_network(tensors):
        return (
            f"none of its {len(network.unmatched)} layers is known, such as"
            f" '{network.unmatched[0]}'; it was made for another kind of model or algorithm"
        )
    return f"is not a network for Stable Diffusion: {describe(tensors)}"


def _bring_over_peft(
    network: Network, grouped: Grouped[Tensor], structure: Structure | None
) -> PeftConfig:
    """Parts that PEFT alone has become those of the adapters; what cannot is left out and said."""
    peft = "PEFT" in grouped.schemes.values()
    config = read_config(network.path, network.metadata, beside=peft)
    network.problems += config.problems
    known = _likely_structures(grouped, structure)
    for layer, parts in list(grouped.layers.items()):
        infos = [layers_of(each)[layer] for each in known if layer in layers_of(each)]
        # PEFT has no flat names; what it writes besides is in the metadata
        onetrainer = grouped.schemes[layer] != "PEFT" or "ot_branch" in network.metadata
        try:
            grouped.layers[layer] = standard_peft(
                layer, parts, config, infos, onetrainer=onetrainer
            )
        except PeftMistake as mistake:
            network.problems.append(f"{layer}: {mistake}")
            del grouped.layers[layer]
    return config


def _likely_structures(
    grouped: Grouped[Tensor], structure: Structure | None
) -> tuple[Structure, ...]:
    """Where to look a layer up that PEFT's parts alone do not tell; those of its family first.

    Some layers are convolutions in SD1 and linear in SDXL.
    """
    if not any(part in parts for parts in grouped.layers.values() for part in PEFT_ALONE):
        return ()
    shapes = {
        layer: {part: _shape(tensor) for part, tensor in parts.items()}
        for layer, parts in grouped.layers.items()
    }
    family = family_of(shapes, one_text_encoder=names_one_text_encoder(grouped), loaded=structure)
    known = (*((structure,) if structure else ()), *KNOWN)
    return tuple(sorted(known, key=lambda each: each.family is not family))


def _add_peft_alphas(network: Network, grouped: Grouped[Tensor], config: PeftConfig) -> None:
    """PEFT keeps alpha in its config: in diffusers' metadata or in a file beside the network."""
    peft = {layer for layer, scheme in grouped.schemes.items() if scheme == "PEFT"}
    unsaid = 0
    for layer, parts in grouped.layers.items():
        # a config beside a file is PEFT's; the metadata speak of all that the file has
        if "alpha" in parts or (layer not in peft and config.source != "the metadata"):
            continue
        unsaid += not _add_alpha(config, layer, parts)
    if unsaid and peft:
        network.notes.append(f"alpha is stated nowhere for {unsaid} layers: taken as the rank")


def _add_alpha(config: PeftConfig, layer: str, parts: dict[str, Tensor]) -> bool:
    """Adds the alpha that is stated for a layer; returns whether its scale is known."""
    rank = rank_of({part: _shape(tensor) for part, tensor in parts.items()})
    whole = "lokr_w1" in parts and "lokr_w2" in parts
    if rank is None and not whole:
        return True  # an algorithm without a rank has no scale either
    rank = rank or round(config.rank(layer) or 0)
    alpha = config.alpha(layer, rank) if rank else None
    if alpha is None:
        return False
    if whole:
        # LyCORIS, whose form this is, does not scale two whole factors; PEFT does
        parts["lokr_w1"] = parts["lokr_w1"] * (alpha / rank)
    else:
        import torch

        parts["alpha"] = torch.tensor(alpha)
    return True


# --- writing ----------------------------------------------------------------------------------

_ARCHITECTURES = {
    Family.SD1: "stable-diffusion-v1/lora",
    Family.SD2: "stable-diffusion-v2-512/lora",
    Family.SDXL: "stable-diffusion-xl-v1-base/lora",
}


def write_network(
    path: str | os.PathLike[str],
    adapters: Mapping[str, Adapter],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    family: Family | None = None,
    fresh: bool = False,
) -> None:
    """Writes a network as kohya's tools do, so that any WebUI reads it. Atomic.

    metadata: texts; `sshs_model_hash`, `sshs_legacy_hash` and the basic `modelspec.*` are added
    (a given `modelspec.*` stays). dtype: of the floating-point tensors, alpha excepted; None keeps
    each as it is. family: decides the spelling of the layers; None: told from the shapes.
    `fresh` as in `atomic_write`. Raises FileProblem.
    """
    if not adapters:
        raise FileProblem(f"{path}: there is no layer to write")
    parts = {layer: adapter.tensors() for layer, adapter in adapters.items()}
    if family is None:
        family = family_of(
            {
                layer: {part: tuple(tensor.shape) for part, tensor in tensors.items()}
                for layer, tensors in parts.items()
            }
        )
    tensors = {
        f"{flat_name(layer, family)}.{part}": _cast(tensor, part, dtype)
        for layer, tensors in parts.items()
        for part, tensor in tensors.items()
    }
    write_named(path, tensors, metadata, family, fresh=fresh)


def write_named(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    family: Family | None = None,
    *,
    fresh: bool = False,
) -> None:
    """As `write_network`, of tensors that have their names already. Raises FileProblem."""
    given = dict(metadata or {})
    training = {key: text for key, text in given.items() if key.startswith("ss_")}
    # the hashes leave out what a person may edit later
    model_hash, legacy = network_hashes(serialised(tensors, training, str(path)))
    basics = _modelspec(Path(path), given, family)
    stamped = {**basics, **given, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy}
    write_safetensors(path, tensors, stamped, fresh=fresh)


def flat_name(layer: str, family: Family | None) -> str:
    """A canonical layer's name in a network file; SDXL's UNet is spelled after ldm, as kohya does.

    A1111 does not know some of the diffusers spellings of SDXL.
    """
    if family is Family.SDXL and layer.startswith("unet."):
        try:
            return flat_ldm(layer, SDXL_BASE)
        except KeyError:
            return flat(layer, family)
    if family is None and layer.startswith("te2."):
        family = Family.SDXL
    return flat(layer, family or Family.SD1)


def _cast(tensor: Tensor, part: str, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or part == "alpha" or not tensor.is_floating_point():
        return tensor.detach()
    return tensor.detach().to(dtype)


def _modelspec(path: Path, given: Mapping[str, str], family: Family | None) -> dict[str, str]:
    """The required fields of https://github.com/Stability-AI/ModelSpec."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    basics = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": given.get("ss_output_name") or path.stem,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.date": now.isoformat().replace("+00:00", ""),
    }
    if family is not None:
        basics["modelspec.architecture"] = _ARCHITECTURES[family]
    return basics
