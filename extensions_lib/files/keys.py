"""The names that network files have for layers and their parts.

Every spelling is brought to kohya's flat one (`lora_unet_…`), which a table made from the model
structures maps to the canonical layer. A new spelling is one entry in `_PREFIXES`, `_PARTS` or
`_REWRITES`. Files whose names say nothing of a layer are the business of `schemes`. Needs no torch.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from extensions_lib.files.schemes import (
    listed_names,
    names_no_encoder,
    second_text_encoder,
    tell,
)
from extensions_lib.files.sizes import Shape
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
    *(
        (f"{outer}{clip}{inner}", kohya)
        for outer in ("text_encoders.", "")
        for clip, kohya in (
            ("clip_l.", "lora_te1_"), ("clip_h.", "lora_te1_"), ("clip_g.", "lora_te2_")
        )
        for inner in ("transformer.", "")
    ),
    ("clip_B.", "lora_te1_"),
    ("clip_bigG.", "lora_te2_"),
    ("lycoris_unet_", "lora_unet_"),
    ("lycoris_te_", "lora_te_"),
    ("lycoris_te1_", "lora_te1_"),
    ("lycoris_te2_", "lora_te2_"),
    ("lycoris_text_encoder_2_", "lora_te2_"),
    ("lycoris_text_encoder_", "lora_te1_"),
    ("lycoris_text_model_", "text_model_"),
    ("lycoris_encoder_layers_", "text_model_encoder_layers_"),
    ("lycoris_", "lora_unet_"),
    ("oft_unet_", "lora_unet_"),
    ("oft_te", "lora_te"),
    ("lora_te_wrapped_transformer_", "lora_te_"),
    ("lora_te_wrapped_model_", "lora_te_"),
)  # fmt: skip
_WRAPPERS = ("base_model.model.", "lora:", "plugin:", "lora.", "plugin.")
_EMA = ("lora_ema:", "plugin_ema:", "lora_ema.", "plugin_ema.")

# the end of a key -> the part's canonical name; parts not listed are named as they are written
_PARTS: Mapping[str, str] = {
    "lora.up.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.alpha": "alpha",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.alpha": "alpha",
    "lora_B.weight": "lora_up.weight",
    "lora_A.weight": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_up.bias": "lora_B.bias",
    "lora_A": "lora_down.weight",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "lora.lora_magnitude_vector": "lora_magnitude_vector",
    "oft_R.weight": "oft_R",
    "oft_R.scaled_oft": "scaled_oft",
}
_OWN_PARTS = (
    "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "on_input",
    "diff", "diff_b", "w_norm", "b_norm", "oft_blocks", "oft_diag", "rescale",
    "bias_indices", "bias_values", "bias_size", "weight", "oft_in", "on_bias",
    # of PEFT, brought to the ones above (files.peft_parts) or refused by name (files.foreign)
    "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B", "lora_E", "lora_B.bias",
    "oft_R", "boft_R", "boft_s", "ia3_l", "vera_lambda_b", "vera_lambda_d", "hra_u", "oft_r",
    "ln_tuning_layers.weight", "ln_tuning_layers.bias",
    "fourierft_spectrum", "q_layer.weight", "p_layer.weight", "lambda_layer",
    "set_weight", "reshape_weight",
)  # fmt: skip
_ENDINGS = {**{part: part for part in _OWN_PARTS}, **_PARTS}
_MOST_DOTS = max(ending.count(".") for ending in _ENDINGS)

# HCP-Diffusion: "path.___.part"; its alpha is multiplied as it is, without a division by the rank
_HCP = ".___."
_HCP_PARTS: Mapping[str, str] = {
    "layer.W_down": "lora_down.weight",
    "layer.W_up": "lora_up.weight",
    "layer.lora_down.weight": "lora_down.weight",
    "layer.lora_up.weight": "lora_up.weight",
    "alpha": "scale",
    "scale": "scale",
}

# spellings in which the layer itself is written otherwise, with a text that only they have
_REWRITES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (".processor.", re.compile(r"\.processor\.to_out_lora\."), ".to_out.0.lora."),
    (".processor.", re.compile(r"\.processor\.(to_[qkv])_lora\."), r".\1.lora."),
    (".self_attn.", re.compile(r"\.self_attn\.to_out_lora\."), ".self_attn.out_proj.lora."),
    (".self_attn.", re.compile(r"\.self_attn\.to_([qkv])_lora\."), r".self_attn.\1_proj.lora."),
    # PEFT may keep the adapter's own name in the key, "default" or another
    (".lora_", re.compile(r"\.(lora_(?:[AB]|magnitude_vector))\.[\w-]+\.weight$"), r".\1.weight"),
    (".lora_", re.compile(r"\.(lora_embedding_[AB])\.[\w-]+$"), r".\1"),
    ("oft_R", re.compile(r"\.oft_R\.[\w-]+\.weight$"), ".oft_R.weight"),
)
# what was around a module when it was saved: torch.compile, DataParallel, PEFT
_AROUND = re.compile(r"(?<![a-z])(?:_orig_mod|module|base_model[._]model)[._]")
# transformers since 5.6 has a text encoder without the `text_model` around it
_UNWRAPPED = re.compile(r"(lora_te[12]?_|^)(?=encoder_layers_|embeddings_|final_layer_norm$)")
# OpenCLIP's own names in a flat name, as sd-webui-additional-networks has them for SD2
_OPENCLIP: tuple[tuple[str, str], ...] = (
    ("_transformer_resblocks_", "_text_model_encoder_layers_"), ("_attn_", "_self_attn_"),
    ("_mlp_c_fc", "_mlp_fc1"), ("_mlp_c_proj", "_mlp_fc2"), ("_ln_1", "_layer_norm1"),
    ("_ln_2", "_layer_norm2"), ("_ln_final", "_text_model_final_layer_norm"),
)  # fmt: skip

# embeddings packed into a network: "bundle_emb.NAME.part"; a name may have dots
_BUNDLE = "bundle_emb."
_BUNDLED_PARTS = re.compile(r"(.+)\.(string_to_param\..+|emb_params|clip_[lgh](?:\.\w+)?)$", re.S)


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
    if _HCP in key:
        layer, _, part = key.partition(_HCP)
        return layer, _HCP_PARTS.get(part, part)
    for sign, pattern, text in _REWRITES:
        if sign in key:
            key = pattern.sub(text, key)
    pieces = key.rsplit(".", _MOST_DOTS + 1)
    for start in range(1, len(pieces)):  # the longest ending first
        ending = ".".join(pieces[start:])
        if ending in _ENDINGS:
            return ".".join(pieces[:start]), _ENDINGS[ending]
    for end in range(len(pieces) - 1, 0, -1):  # parts of an unknown algorithm on a known layer
        spelled = ".".join(pieces[:end])
        if layer_of(spelled, table) is not None:
            return spelled, ".".join(pieces[end:])
    return (head, rest) if head.startswith(("lora_", "lycoris_", "oft_")) else (key, "")


def layer_of(spelled: str, table: Mapping[str, str], *, second_text: bool = False) -> str | None:
    """The canonical layer that a file's spelling of a layer means, or None.

    second_text: a text encoder that is not named is SDXL's second one.
    """
    found = table.get(spelled)
    if found is not None:
        return found
    for wrapper in _WRAPPERS:
        spelled = spelled.removeprefix(wrapper)
    for prefix, kohya in _PREFIXES:
        if spelled.startswith(prefix):
            spelled = kohya + spelled[len(prefix) :]
            break
    name = _UNWRAPPED.sub(r"\1text_model_", spelled.replace(".", "_"), count=1)
    if name.startswith("text_"):
        name = ("lora_te2_" if second_text else "lora_te1_") + name
    found = table.get(name)
    if found is None and not name.startswith("lora_"):
        found = table.get(f"lora_unet_{name}")  # a UNet alone needs no name
    if found is None and name.startswith("lora_te") and ("resblocks" in name or "_ln_" in name):
        for old, new in _OPENCLIP:
            name = name.replace(old, new)
        found = table.get(name)
    if found is None and (plain := _AROUND.sub("", spelled)) != spelled:
        return layer_of(plain, table, second_text=second_text)
    return found


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
    schemes: dict[str, str] = field(default_factory=dict)  # canonical -> whose way of naming
    embeddings: dict[str, dict[str, Value]] = field(default_factory=dict)  # bundled: name -> part
    unmatched: list[str] = field(default_factory=list)  # layers or keys that mean nothing here
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was decided, where nothing is left out

    @property
    def ways(self) -> Counter[str]:
        """Whose way of naming -> layers."""
        return Counter(self.schemes.values())


def group(
    values: Mapping[str, Value],
    structure: Structure | None = None,
    *,
    shape: Callable[[Value], Shape] | None = None,
) -> Grouped[Value]:
    """Sorts the values of a network file by layer and part. What is not understood is listed.

    shape: of a value; without it the values are shapes themselves.
    """
    shapes = _Lazy(values, shape or _itself)
    found: Grouped[Value] = Grouped()
    listed = listed_names(shapes, (structure, *KNOWN) if structure else KNOWN)
    if listed is not None:
        found.problems += listed.problems
        for key, (layer, part) in listed.names.items():
            found.layers.setdefault(layer, {})[part] = values[key]
            found.spelled.setdefault(layer, key)
            found.schemes[layer] = "cloneofsimo"
        values = {k: v for k, v in values.items() if k not in listed.keys}
    _sort(found, values, shapes, flat_names(structure), structure)
    return found


def _itself(value: object) -> Shape:
    return value if isinstance(value, tuple) else ()


class _Lazy(Mapping[str, Shape]):
    """The shapes of some values, made when asked for."""

    def __init__(self, values: Mapping[str, Value], shape: Callable[[Value], Shape]) -> None:
        self._values, self._shape = values, shape

    def __getitem__(self, key: str) -> Shape:
        return self._shape(self._values[key])

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _sort(
    found: Grouped[Value],
    values: Mapping[str, Value],
    shapes: Mapping[str, Shape],
    table: Mapping[str, str],
    structure: Structure | None,
) -> None:
    """Puts each value to its layer; a layer with two spellings goes to `_settle`."""
    spellings: dict[str, dict[str, str]] = {}  # layer as it is spelled -> part -> key
    averaged = 0
    for key, value in values.items():
        if key.startswith(_BUNDLE):
            name, part = _bundled(key)
            found.embeddings.setdefault(name, {})[part] = value
            continue
        if key.startswith(_EMA):
            averaged += 1
            continue
        spelled, part = split_key(key, table)
        first = spellings.setdefault(spelled, {}).setdefault(part, key)
        if first != key and part:
            found.problems.append(f"{spelled}: {part} is given twice, as '{key}' too; {_FIRST}")
    if averaged:
        found.notes.append(f"{averaged} averaged (EMA) tensors are left out for the trained ones")
    unnamed = {
        spelled: {part: shapes[key] for part, key in parts.items()}
        for spelled, parts in spellings.items()
        if names_no_encoder(spelled)
    }
    second = second_text_encoder(unnamed, (structure,) if structure else KNOWN)
    for spelled, parts in spellings.items():
        layer = layer_of(spelled, table, second_text=second)
        known = {part: key for part, key in parts.items() if part}
        if layer is None or len(known) < len(parts):
            found.unmatched.append(spelled)
        if layer is not None and known:
            found.schemes.setdefault(layer, tell(next(iter(known.values())), spelled))
            _settle(found, layer, spelled, {part: values[key] for part, key in known.items()})


_FIRST = "the first is used"


def _settle(found: Grouped[Value], layer: str, spelled: str, parts: dict[str, Value]) -> None:
    """Gives the parts to the layer; of two spellings with the same parts the first has it."""
    known = found.layers.get(layer)
    if known is None:
        found.layers[layer], found.spelled[layer] = parts, spelled
    elif known.keys().isdisjoint(parts):  # halves of one layer, such as an alpha apart
        known.update(parts)
    else:
        twice = ", ".join(part for part in parts if part in known)
        found.problems.append(
            f"{layer}: {twice} is given twice, as '{found.spelled[layer]}' and as '{spelled}';"
            f" {_FIRST}"
        )


def _bundled(key: str) -> tuple[str, str]:
    """(name of the embedding, part) of a key of a bundled embedding."""
    rest = key[len(_BUNDLE) :]
    match = _BUNDLED_PARTS.match(rest)
    if match:
        return match[1], match[2]
    name, _, part = rest.partition(".")
    return name, part
