"""Weights by element: what `lbwe=` says of the attentions, feed-forwards, convolutions … of blocks.

Written as the extension sd-webui-lora-block-weight does: `blocks:elements:weight`, several of them
separated by commas, or the name of a preset. Both lists are separated by spaces; an empty one means
all, and NOT in front means all others. Blocks are names or ranges of `prompts.blocks`; an element
is any part of a layer's name, in the original (ldm) naming or that of diffusers. Where one covers a
layer its weight takes the place of the block's; of several, the last counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from extensions_lib.prompts.blocks import BASE, LISTS, MIDDLE, BlockMistake

PRESETS: Mapping[str, str] = {
    "ATTNDEEPON": "IN05-OUT05:attn:1",
    "ATTNDEEPOFF": "IN05-OUT05:attn:0",
    "PROJDEEPOFF": "IN05-OUT05:proj:0",
    "XYZ": "::1",
}
_ORDER = LISTS[26]
_WORDS = {
    "IN": [name for name in _ORDER if name.startswith("IN")],
    "OUT": [name for name in _ORDER if name.startswith("OUT")],
    "MID": [MIDDLE],
    "ENCODER": [BASE],
}
_NUMBER = re.compile(r"(^|_)\d+(?=_|$)")
# What layers are called in either naming, below their block and as a whole; 0 is any number.
_ATTENTION = """proj_in proj_out norm ff_net_0_proj ff_net_0 transformer_blocks_0_ff_net_0_proj
    transformer_blocks_0_ff_net_0 """ + " ".join(
    f"transformer_blocks_0_{part}"
    for part in (
        *(f"attn{n}_to_{side}" for n in (1, 2) for side in ("q", "k", "v", "out_0")),
        *("norm1", "norm2", "norm3"),
    )
)
_RESNET = "conv1 conv2 norm1 norm2 time_emb_proj conv_shortcut"
_ORIGINAL = f"{_ATTENTION} in_layers_0 out_layers_0 emb_layers_0 skip_connection op conv"
_PLACES = {
    "input_blocks_0_0": _ORIGINAL, "middle_block_0": _ORIGINAL, "output_blocks_0_0": _ORIGINAL,
    **{
        f"{block}_{part}": inside
        for block in ("down_blocks_0", "mid_block", "up_blocks_0")
        for part, inside in (
            ("attentions_0", _ATTENTION), ("resnets_0", _RESNET),
            ("downsamplers_0", "conv"), ("upsamplers_0", "conv"),
        )
    },
    "text_model_encoder_layers_0": """self_attn_q_proj self_attn_k_proj self_attn_v_proj
        self_attn_out_proj mlp_fc1 mlp_fc2 layer_norm1 layer_norm2""",
    "transformer_resblocks_0": "attn_out_proj ln_1 ln_2 ln_0 mlp_c_fc mlp_c_proj",
}  # fmt: skip
_NAMES = " ".join(f"{place}_{part}" for place, parts in _PLACES.items() for part in parts.split())
_NAMES += """ conv_in conv_out conv_norm_out time_embed_0 label_emb_0_0 out_0
    time_embedding_linear_0 add_embedding_linear_0 text_model_final_layer_norm
    text_model_embeddings_token_embedding text_model_embeddings_position_embedding
    token_embedding positional_embedding ln_final
    text_projection"""


@dataclass(frozen=True)
class Element:
    """One weight; `blocks` and `parts` None: all. `text` is the whole as it was written."""

    text: str
    weight: float
    blocks: frozenset[str] | None = None
    parts: tuple[str, ...] | None = None
    other_blocks: bool = False  # than those named
    other_parts: bool = False

    def covers(self, block: str, names: Iterable[str]) -> bool:
        """Whether it is for a layer in this block ("" for none) that has these names."""
        if self.blocks is not None and (block in self.blocks) is self.other_blocks:
            return False
        if self.parts is None:
            return True
        flat = [name.replace(".", "_") for name in names]
        found = any(part in name for part in self.parts for name in flat)
        return found is not self.other_parts


def read_elements(text: str, presets: Mapping[str, str] = PRESETS) -> tuple[Element, ...]:
    """What follows `lbwe=`: a preset's name, or `blocks:elements:weight,…`. Raises BlockMistake."""
    by_name = {name.upper(): elements for name, elements in presets.items()}
    written = by_name.get(text.strip().upper(), text)
    return tuple(_element(part.strip(), presets) for part in written.split(","))


def _element(text: str, presets: Mapping[str, str]) -> Element:
    fields = text.split(":")
    if len(fields) == 1:
        raise BlockMistake(
            f"there is no preset {text!r}; there are {', '.join(presets)}, and IN05-OUT05:attn:0"
        )
    if len(fields) != 3:
        raise BlockMistake(f"{text!r} is not of the form blocks:elements:weight")
    blocks, other_blocks = _listed(fields[0])
    parts, other_parts = _listed(fields[1])
    try:
        weight = float(fields[2])
    except ValueError:
        raise BlockMistake(f"the weight {fields[2]!r} of {text!r} is not a number") from None
    if not math.isfinite(weight):
        raise BlockMistake(f"the weight {fields[2]!r} of {text!r} is not a finite number")
    return Element(
        text,
        weight,
        frozenset(name for word in blocks for name in _blocks(word, text)) if blocks else None,
        tuple(_part(word, text) for word in parts) or None,
        other_blocks,
        other_parts,
    )


def _listed(text: str) -> tuple[list[str], bool]:
    """The words of a list, and whether all others are meant."""
    words = text.split()
    return (words[1:], True) if words[:1] == ["NOT"] else (words, False)


def _blocks(word: str, text: str) -> list[str]:
    """The blocks that a word means: a name, a side, or a range in either direction."""
    found = _WORDS.get(word.upper())
    if found is not None:
        return found
    first, dash, last = word.upper().partition("-")
    ends = [first, last] if dash else [first]
    for name in ends:
        if name not in _ORDER:
            raise BlockMistake(
                f"there is no block {name!r} ({text}); there are {_ORDER[0]}, IN00 to IN11,"
                f" {MIDDLE}, OUT00 to OUT11"
            )
    low, *high = sorted(_ORDER.index(name) for name in ends)
    return list(_ORDER[low : (high[0] if high else low) + 1])


def _part(word: str, text: str) -> str:
    part = word.lower().replace(".", "_")
    if part not in _NAMES and _NUMBER.sub(r"\g<1>0", part) not in _NAMES:
        raise BlockMistake(
            f"no layer has {word!r} in its name ({text}); such as attn, attn1, attn2, to_q, ff,"
            " proj, in_layers, emb_layers, out_layers, skip_connection, mlp"
        )
    return part
