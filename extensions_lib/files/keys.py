"""The names that network files have for layers and their parts.

Every spelling is brought to kohya's flat one (`lora_unet_…`), which a table made from the model
structures maps to the canonical layer. A new spelling is one entry in `_PREFIXES`, `_PARTS` or
`_REWRITES`. Needs no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from extensions_lib.models.families import SD15, SD21, SDXL_BASE, SDXL_REFINER, Structure
from extensions_lib.models.names import kohya_names

KNOWN = (SD15, SD21, SDXL_BASE, SDXL_REFINER)

Value = TypeVar("Value")

# leading text -> kohya's; tried in order, the first that fits is replaced, once
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("unet.", "lora_unet_"),
    ("text_encoder_2.", "lora_te2_"),
    ("text_encoder.", "lora_te1_"),
    ("diffusion_model.", "lora_unet_"),
    ("text_encoders.clip_l.transformer.", "lora_te1_"),
    ("text_encoders.clip_g.transformer.", "lora_te2_"),
    ("lycoris_unet_", "lora_unet_"),
    ("lycoris_te", "lora_te"),
    ("lycoris_", "lora_unet_"),
    ("oft_unet_", "lora_unet_"),
    ("text_model.", "lora_te1_text_model_"),
    ("down_blocks.", "lora_unet_down_blocks_"),
    ("mid_block.", "lora_unet_mid_block_"),
    ("up_blocks.", "lora_unet_up_blocks_"),
)
_WRAPPERS = ("base_model.model.",)  # taken off before a prefix is looked for

# the end of a key -> the part's canonical name; parts not listed are named as they are written
_PARTS: Mapping[str, str] = {
    "lora.up.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector.default.weight": "dora_scale",
}
_OWN_PARTS = (
    "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "on_input",
    "diff", "diff_b", "w_norm", "b_norm", "oft_blocks", "oft_diag", "rescale",
    "bias_indices", "bias_values", "bias_size", "weight",
)  # fmt: skip
_ENDINGS = {**{part: part for part in _OWN_PARTS}, **_PARTS}
_MOST_DOTS = max(ending.count(".") for ending in _ENDINGS)

# spellings in which the layer itself is written otherwise
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.processor\.to_out_lora\."), ".to_out.0.lora."),
    (re.compile(r"\.processor\.(to_[qkv])_lora\."), r".\1.lora."),
    (re.compile(r"\.self_attn\.to_out_lora\."), ".self_attn.out_proj.lora."),
    (re.compile(r"\.self_attn\.to_([qkv])_lora\."), r".self_attn.\1_proj.lora."),
)


@functools.lru_cache(maxsize=8)
def flat_names(structure: Structure | None = None) -> Mapping[str, str]:
    """Flat layer name -> canonical, for the union of the known families.

    The names of `structure` (a loaded model of another size) are added and come first.
    """
    table: dict[str, str] = {}
    for known in reversed(KNOWN):
        table.update(kohya_names(known))
    if structure is not None:
        table.update(kohya_names(structure))
    return table


def split_key(key: str, table: Mapping[str, str]) -> tuple[str, str]:
    """(layer as the file spells it, canonical part name or ""): no layer needs to be known."""
    head, dot, rest = key.partition(".")
    if dot and head in table:
        return head, _ENDINGS.get(rest, rest)
    for pattern, text in _REWRITES:
        key = pattern.sub(text, key)
    pieces = key.split(".")
    for dots in range(_MOST_DOTS, -1, -1):  # the longest ending first
        ending = ".".join(pieces[-1 - dots :])
        if len(pieces) > dots + 1 and ending in _ENDINGS:
            return ".".join(pieces[: -1 - dots]), _ENDINGS[ending]
    return (head, rest) if head.startswith(("lora_", "lycoris_", "oft_")) else (key, "")


def layer_of(spelled: str, table: Mapping[str, str]) -> str | None:
    """The canonical layer that a file's spelling of a layer means, or None."""
    found = table.get(spelled)
    if found is not None:
        return found
    for wrapper in _WRAPPERS:
        spelled = spelled.removeprefix(wrapper)
    for prefix, kohya in _PREFIXES:
        if spelled.startswith(prefix):
            spelled = kohya + spelled[len(prefix) :]
            break
    return table.get(spelled.replace(".", "_"))


def part_of(key: str, structure: Structure | None = None) -> tuple[str | None, str]:
    """(canonical layer or None, canonical part name) of one key of a network file."""
    table = flat_names(structure)
    spelled, part = split_key(key, table)
    return layer_of(spelled, table), part


@dataclass
class Grouped(Generic[Value]):
    """A file's tensors (or shapes) by canonical layer and part."""

    layers: dict[str, dict[str, Value]] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)  # canonical -> as the file has it
    unmatched: list[str] = field(default_factory=list)  # layers or keys that mean nothing here
    problems: list[str] = field(default_factory=list)


def group(values: Mapping[str, Value], structure: Structure | None = None) -> Grouped[Value]:
    """Sorts the values of a network file by layer and part. What is not understood is listed."""
    table = flat_names(structure)
    found: Grouped[Value] = Grouped()
    layers: dict[str, str | None] = {}
    strange: dict[str, None] = {}
    for key, value in values.items():
        spelled, part = split_key(key, table)
        if spelled not in layers:
            layers[spelled] = layer_of(spelled, table)
        layer = layers[spelled]
        if layer is None or not part:
            strange[spelled] = None
            continue
        parts = found.layers.setdefault(layer, {})
        if part in parts:
            found.problems.append(
                f"{layer}: {part} is given twice, as '{found.spelled[layer]}' and as '{spelled}';"
                " the first is used"
            )
            continue
        parts[part] = value
        found.spelled.setdefault(layer, spelled)
    found.unmatched = list(strange)
    return found
