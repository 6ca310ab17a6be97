"""ControlNet-LLLite files: a side path for each layer of the UNet that they touch.

Keys are `lllite_unet_<flat layer name>.<part>`, the layer named after ldm or diffusers as in
networks (kohya's sd-scripts, `networks/control_net_lllite.py`, writes the former).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.header import short
from extensions_lib.files.keys import KNOWN, flat_names
from extensions_lib.files.recognise import layers_of
from extensions_lib.files.safe import read_any_header, read_file, write_safetensors
from extensions_lib.files.sizes import Shapes
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.names import flat_ldm
from extensions_lib.models.strangers import describe

if TYPE_CHECKING:
    import torch

    from extensions_lib.adapters.lllite import LLLite

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin", ".pth")
PREFIX = "lllite_"
_UNET = "lllite_unet_"
# Layers of a UNet that are given no picture: the text's, and those of the time.
_NO_PICTURE = ("attn2.to_k", "attn2.to_v", "time_embedding.", "add_embedding.", "time_emb_proj")
Key = tuple[str, int, int]


@dataclass
class LLLiteFacts:
    """What a header tells of a file."""

    layers: int = 0
    cond_dims: Counter[int] = field(default_factory=Counter)  # width of the picture's part: layers
    mlp_dims: Counter[int] = field(default_factory=Counter)  # width of the hidden layer: layers
    family: Family | None = None
    unmatched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class ControlLLLite:
    """The side paths of one file by canonical layer, and what of it was not understood."""

    name: str
    path: Path
    layers: dict[str, LLLite]
    unmatched: list[str] = field(default_factory=list)  # keys with no meaning here
    problems: list[str] = field(default_factory=list)  # "layer: what is wrong", left out
    metadata: dict[str, str] = field(default_factory=dict)
    family: Family | None = None
    key: Key = ("", 0, 0)  # content identity: absolute path, size, time of the last change in ns


def is_lllite(names: Iterable[str]) -> bool:
    """Whether these tensor names are those of a ControlNet-LLLite."""
    return any(name.startswith(PREFIX) for name in names)


def lllite_facts(shapes: Shapes) -> LLLiteFacts:
    """Sorts the tensors of a file by name and shape alone, without torch."""
    found, unmatched, problems = _grouped(shapes, None)
    facts = LLLiteFacts(unmatched=unmatched, problems=problems)
    widths: dict[str, int] = {}
    for layer, parts in found.items():
        up, mid = parts.get("up.0.weight", ()), parts.get("mid.0.weight", ())
        if len(up) < 2 or len(mid) < 2:
            lacking = "mid.0.weight" if len(up) > 1 else "up.0.weight"
            facts.problems.append(f"{layer}: lacks {lacking}")
            continue
        widths[layer] = up[0]
        facts.mlp_dims[up[1]] += 1
        facts.cond_dims[mid[1] - up[1]] += 1
    facts.layers, facts.family = len(widths), _family(widths)
    return facts


def lllite_header(path: str | os.PathLike[str]) -> LLLiteFacts | None:
    """What a file's header tells; None for a file of another kind. Raises FileProblem."""
    shapes = read_any_header(path).shapes
    return lllite_facts(shapes) if is_lllite(shapes) else None


def read_lllite(
    path: str | os.PathLike[str], *, structure: Structure | None = None, name: str | None = None
) -> ControlLLLite:
    """Reads a file; its tensors keep their dtype and are mapped, not copied (safetensors).

    structure: of the loaded model, if its layer names go beyond those of SD1, SD2 and SDXL.
    Layers that cannot be used are listed in `problems`; the others load.
    Raises FileProblem: the file is of another kind, or nothing in it can be used.
    """
    from extensions_lib.adapters.base import AdapterError
    from extensions_lib.adapters.lllite import LLLite
    from extensions_lib.files.networks import network_key

    path = Path(path)
    key = network_key(path)  # before the read: a change while reading gives another key later
    tensors, metadata = read_file(path)
    if not is_lllite(tensors):
        raise FileProblem(f"{path}: is no ControlNet-LLLite: {describe(tensors)}")
    found, unmatched, problems = _grouped(tensors, structure)
    layers: dict[str, LLLite] = {}
    for layer, parts in found.items():
        try:
            made = LLLite.from_tensors(parts)
        except AdapterError as error:
            problems.append(f"{layer}: {error}")
            continue
        wrong = _not_finite(made)
        if wrong:
            problems.append(f"{layer}: {wrong} holds values that are no numbers")
        else:
            layers[layer] = made
    if not layers:
        first = (problems or [f"'{short(unmatched[0])}' is no layer that is known here"])[0]
        raise FileProblem(f"{path}: none of its layers can be used, the first because: {first}")
    family = _family({layer: each.width for layer, each in layers.items()})
    return ControlLLLite(
        name or path.stem, path, layers, unmatched, problems, metadata, family, key
    )


def _grouped(
    values: Mapping[str, Any], structure: Structure | None
) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """The values by canonical layer and part; names that mean nothing here; problems."""
    table = flat_names(structure)
    found: dict[str, dict[str, Any]] = {}
    unmatched: list[str] = []
    barred: dict[str, str] = {}
    for key, value in values.items():
        spelled, _, part = key.partition(".")
        layer = table.get(f"lora_unet_{spelled.removeprefix(_UNET)}")
        if layer is None or not spelled.startswith(_UNET):
            unmatched.append(key)
        elif any(mark in layer for mark in _NO_PICTURE):
            barred[layer] = f"{layer}: its input has no place in the picture"
        elif part in found.setdefault(layer, {}):
            barred[f"{layer} {part}"] = f"{layer}: {part} is given twice; the first is used"
        else:
            found[layer][part] = value
    return found, unmatched, list(barred.values())


def _not_finite(layer: LLLite) -> str | None:
    """Names the first part with values that are no numbers: pictures would turn black."""
    for name, tensor in layer.tensors().items():
        if not bool(tensor.float().isfinite().all()):
            return name
    return None


def _family(widths: Mapping[str, int]) -> Family | None:
    """The only family with all of these layers, their inputs so wide; None: several or none."""
    families = {
        known.family
        for known in KNOWN
        if widths
        and all(
            layer in layers_of(known) and layers_of(known)[layer].shape[1:2] == (width,)
            for layer, width in widths.items()
        )
    }
    return families.pop() if len(families) == 1 else None


# --- writing ----------------------------------------------------------------------------------


def write_lllite(
    path: str | os.PathLike[str],
    layers: Mapping[str, LLLite],
    structure: Structure,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes side paths by canonical layer as sd-scripts does, for a model of this structure.

    Atomic. dtype None: each tensor's own. Raises FileProblem.
    """
    if not layers:
        raise FileProblem(f"{path}: there is no layer to write")
    tensors = {
        f"{flat_ldm(layer, structure).replace('lora_', PREFIX, 1)}.{part}": (
            tensor.detach() if dtype is None else tensor.detach().to(dtype)
        )
        for layer, each in layers.items()
        for part, tensor in each.tensors().items()
    }
    write_safetensors(path, tensors, metadata or {})
