"""Networks of other model families and of algorithms that cannot be applied, told by their names.

The names are those that the families' own code, kohya's sd-scripts, musubi-tuner, diffusers and
ComfyUI write. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

# The first row whose pattern most of the names have, and whose mark any of them has, tells the
# family. "/" stands for the dot of dotted names and the underscore of flat ones.
_DOUBLE = r"(double|single)_blocks/\d+/"
_DIT = r"(?<!\d[._])(single_)?transformer_blocks/\d+/"  # a UNet's follow a number
LLLITE = "ControlNet-LLLite"
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (LLLITE, r"lllite_", ""),
    ("AnimateDiff", r"motion_modules?/\d+/|temporal_transformer", ""),
    ("HunyuanVideo", _DOUBLE, r"(img|txt)_(mlp/fc\d|mod/linear)|token_refiner"),
    ("Chroma", _DOUBLE, r"distilled_guidance_layer"),
    ("Flux", _DOUBLE, ""),
    ("Flux", _DIT, r"single_transformer_blocks"),
    ("AuraFlow", r"joint_transformer_blocks/\d+/", ""),
    ("Qwen-Image", _DIT, r"(img|txt)_(mlp|mod)"),
    ("Stable Diffusion 3", r"joint_blocks/\d+/", ""),
    ("Stable Diffusion 3", _DIT, r"attn/(add_[qkv]_proj|to_add_out)"),
    ("PixArt", _DIT, r"adaln_single|caption_projection"),
    ("a transformer model (DiT)", _DIT, ""),
    ("Wan", r"blocks/\d+/(self_attn/[qkvo]|cross_attn/((k|v)_img|[qkvo])|ffn/[02])([._]|$)", ""),
    ("HunyuanDiT", r"blocks/\d+/attn[12]/(Wqkv|q_proj|kv_proj|out_proj)", ""),
    ("Lumina", r"(noise|context)_refiner/\d+/|layers/\d+/(attention|feed_forward|adaLN)", ""),
    ("Cosmos", r"blocks/block\d+/|blocks/\d+/(adaln_modulation|self_attn/[qkv]_proj)", ""),
    ("Stable Cascade", r"lora_prior_|(down|up)_blocks/\d+/\d+/(channelwise|kv_mapper|attn)", ""),
    ("a language model", r"(^|[._])model/layers/\d+/(self_attn|mlp)/", ""),
    ("T5", r"lora_te3_|encoder/block/\d+/layer/\d+/", ""),
)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text.replace("/", "[._]"))


_PATTERNS = tuple((name, _pattern(most), _pattern(mark)) for name, most, mark in _FAMILIES)


def foreign_family(keys: Iterable[str]) -> str | None:
    """The family, unknown here, that most of these unmatched names belong to, or None."""
    names = list(keys)
    for family, most, mark in _PATTERNS:
        if sum(1 for name in names if most.search(name)) * 2 > len(names) and any(
            mark.search(name) for name in names
        ):
            return family
    return None


def use(family: str, name: str) -> str | None:
    """How a file that is no network here is used all the same, or None if it cannot be."""
    return f"write <lllite:{name}:1> and choose a control picture" if family == LLLITE else None


# part -> the algorithm that has it
_ALGORITHMS: dict[str, str] = {
    "oft_r": "PEFT's OFT of before 0.16, another one",
    "ln_tuning_layers.weight": "PEFT's LN tuning, which replaces a norm's weight and bias",
    "ln_tuning_layers.bias": "PEFT's LN tuning, which replaces a norm's weight and bias",
    "vera_lambda_b": "VeRA",
    "vera_lambda_d": "VeRA",
    "hra_u": "HRA",
    "fourierft_spectrum": "FourierFT",
    "q_layer.weight": "T-LoRA",
    "p_layer.weight": "T-LoRA",
    "lambda_layer": "T-LoRA",
    "set_weight": "a weight that replaces the layer's own",
    "reshape_weight": "a layer of another size than the model's",
    "layer.bias": "a LoRA with a bias of its own (HCP-Diffusion)",
    "layer.lora_up.bias": "a LoRA with a bias of its own (HCP-Diffusion)",
    "layer.rank_groups": "HCP-Diffusion's grouped LoHa",
}


def unsupported(parts: Collection[str]) -> str | None:
    """What a layer's parts belong to that cannot be applied, or None."""
    found = next((_ALGORITHMS[part] for part in parts if part in _ALGORITHMS), None)
    return None if found is None else f"is {found}: not supported"
