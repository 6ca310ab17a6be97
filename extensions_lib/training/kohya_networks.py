"""network_module and network_args of sd-scripts as options: its own networks and LyCORIS'.

The two differ in what they take for what is not named: networks.lora trains no 3x3 convolutions
unless conv_dim says so, and conv_alpha is 1 then; LyCORIS trains all that its preset `full` names,
convolutions with the rank and alpha of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LYCORIS = "lycoris.kohya"
MODULES = {
    "networks.lora": "lora",
    "networks.dylora": "dylora",
    "networks.oft": "oft",
    "networks.lora_fa": "lora-fa",
    LYCORIS: "",
}
ALGORITHMS = {
    "lora": "lora",
    "locon": "lora",
    "loha": "loha",
    "lokr": "lokr",
    "ia3": "ia3",
    "full": "full",
    "glora": "glora",
    "dylora": "dylora",
    "diag-oft": "diag-oft",
    "boft": "boft",
}
# LyCORIS' preset: the layers, whether 3x3 convolutions are among them, and the text encoders.
PRESETS = {
    "full": ("full", True, True),
    "full-lin": ("full-lin", False, True),
    "attn-mlp": ("attn-mlp", False, True),
    "attn-only": ("attn-only", False, True),
    "unet-only": ("full", True, False),
    "unet-transformer-only": ("attn-mlp", False, False),
    "unet-convblock-only": ("unet-convblock-only", True, False),
    "ia3": ("ia3", False, True),
}
_OF_LYCORIS = {  # of its arguments alone: the option it is
    "use_tucker": "use_tucker",
    "use_cp": "use_tucker",
    "use_conv_cp": "use_tucker",
    "dora_wd": "dora_wd",
    "factor": "factor",
    "decompose_both": "decompose_both",
    "full_matrix": "full_matrix",
    "constraint": "constraint",
    "constrain": "constraint",
    "rescaled": "rescaled",
    "train_norm": "train_norm",
    "block_size": "unit",
}
ARGUMENTS = {  # of any module
    "conv_dim": "conv_dim",
    "conv_alpha": "conv_alpha",
    "dropout": "network_dropout",
    "rank_dropout": "rank_dropout",
    "module_dropout": "module_dropout",
    "unit": "unit",
    "block_dims": "block_dims",
    "block_alphas": "block_alphas",
    "conv_block_dims": "conv_block_dims",
    "conv_block_alphas": "conv_block_alphas",
    "loraplus_lr_ratio": "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio": "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio": "loraplus_text_encoder_lr_ratio",
    **_OF_LYCORIS,
}
# What can be left as it is; why not, where it is asked for.
_ONLY_FALSE = {
    "use_scalar": "no layer has a strength that is learnt",
    "unbalanced_factorization": "weights are split as evenly as factor allows",
    "train_on_input": "of IA3 the feed-forward's second layer alone learns on its input",
    "train_t5xxl": "no model here has a T5",
}
_NO_MATTER = ("bypass_mode", "rank_dropout_scale")  # how it is computed; see `_notes`
_SHARES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_COUNTS = ((12, 1, 12), (9, 3, 9))  # blocks of SD1, and of SDXL
_MOST_RANK = 1024


class Refused(Exception):
    """An argument that cannot be followed, with the reason."""


@dataclass
class Network:
    """What a network's arguments come to: options, and what is said about them."""

    told: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_network(module: str | None, arguments: Sequence[str], rank: Any, alpha: Any) -> Network:
    """The options that a module with these arguments, a rank and an alpha comes to.

    Raises Refused, naming the argument.
    """
    given = _given(arguments)
    if module is None:
        module = LYCORIS if "algo" in given or "preset" in given else "networks.lora"
    found = Network()
    if MODULES[module]:
        found.told["kind"] = MODULES[module]
    for name, text in given.items():
        _take(found.told, module, name, text)
    if weights := {name: given[name] for name in _SHARES if name in given}:
        found.told["block_lr_weight"] = block_weights(
            weights, float(given.get("block_lr_zero_threshold", 0))
        )
    if str(found.told.get("conv_dim")) == "0":
        found.told["conv_dim"] = None
    if module == LYCORIS:
        _as_lycoris(found, given, rank, alpha)
    elif module == "networks.oft":
        _as_oft(found.told, given, rank, alpha)
    elif module == "networks.dylora":
        found.told.setdefault("unit", 1)
        found.told.pop("conv_alpha", None)  # theirs has one alpha for all
    elif found.told.get("conv_dim") is not None or "conv_block_dims" in found.told:
        found.told.setdefault("conv_alpha", 1.0)
    return found


def _given(arguments: Sequence[str]) -> dict[str, str]:
    given = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not equals:
            raise Refused(f"{text!r} is no name=value")
        given[name.strip()] = value.strip().strip("\"'")
    return given


def _take(told: dict[str, Any], module: str, name: str, text: str) -> None:
    lycoris = module == LYCORIS
    if name in ARGUMENTS:
        if name in _OF_LYCORIS and not lycoris:
            raise Refused(f"{name} is of {LYCORIS}, and says nothing to {module}")
        if text.lower() != "none":
            told[ARGUMENTS[name]] = text
    elif name in _ONLY_FALSE:
        if _is_true(text):
            raise Refused(f"{name}: {_ONLY_FALSE[name]}")
    elif name == "wd_on_output":
        if not _is_true(text):
            raise Refused("wd_on_output: DoRA's sizes are those of outputs; leave it out")
    elif name in ("algo", "preset", "rs_lora"):
        if not lycoris:
            raise Refused(f"{name} is of {LYCORIS}, and says nothing to {module}")
    elif name in ("enable_all_linear", "enable_conv"):
        if module != "networks.oft":
            raise Refused(f"{name} is of networks.oft, and says nothing to {module}")
    elif name not in (*_NO_MATTER, *_SHARES, "block_lr_zero_threshold"):
        raise Refused(f"{name} is not known here")


def _is_true(text: str) -> bool:
    return text.lower() not in ("false", "0", "no", "none", "")


def _as_lycoris(found: Network, given: Mapping[str, str], rank: Any, alpha: Any) -> None:
    told, algorithm = found.told, given.get("algo", "lora").lower()
    if algorithm not in ALGORITHMS:
        raise Refused(f"algo {algorithm!r} is none of {', '.join(ALGORITHMS)}")
    told["kind"] = ALGORITHMS[algorithm]
    preset = given.get("preset") or "full"
    if preset not in PRESETS:
        raise Refused(f"preset {preset!r} is none of {', '.join(PRESETS)}; files are not read")
    told["layers"], kernels, texts = PRESETS[preset]
    if kernels and "conv_dim" in told and told["conv_dim"] is None:  # 0: none of 3x3
        if preset == "unet-convblock-only":
            raise Refused(f"conv_dim 0 and preset {preset} leave little to train")
        told["layers"] = "full-lin"
    if not kernels or told.get("conv_dim", "") is None:
        told.pop("conv_dim", None)
        told.pop("conv_alpha", None)
    if not texts:
        told["train_text_encoder"] = False
    if told["kind"] == "lokr" and int(rank) > _MOST_RANK:  # a way to say that nothing is split
        told |= {"full_matrix": True, "network_dim": _MOST_RANK}
        told.pop("conv_dim", None)
    if _is_true(given.get("rs_lora", "false")):
        # its strength is alpha / √rank
        told["network_alpha"] = float(alpha) * math.sqrt(int(rank))
        conv = int(told.get("conv_dim") or rank)
        told["conv_alpha"] = float(told.get("conv_alpha") or alpha) * math.sqrt(conv)
    share = float(told.get("rank_dropout") or 0)
    if share and not _is_true(given.get("rank_dropout_scale", "false")):
        found.notes.append("rank_dropout: what stays is scaled up, as with rank_dropout_scale.")


def _as_oft(told: dict[str, Any], given: Mapping[str, str], rank: Any, alpha: Any) -> None:
    """Theirs has the constraint as alpha, and the UNet alone: its attention, unless told more."""
    told["constraint"] = alpha
    told["train_text_encoder"] = False
    whole = _is_true(given.get("enable_all_linear", "false"))
    told["layers"] = "attn-mlp" if whole else "attn-only"
    if _is_true(given.get("enable_conv", "false")):
        told["conv_dim"] = rank


def block_weights(weights: Mapping[str, str], threshold: float = 0.0) -> tuple[float, ...]:
    """25 weights of SD1's blocks, or 23 of SDXL's, out of those of three parts.

    What is not named has 1, and 0 is what is not above the threshold. Raises Refused.
    """
    values = {name: _weights_of(name, text) for name, text in weights.items()}
    fitting = [
        counts
        for counts in _COUNTS
        if all(len(values.get(n, ())) in (0, c) for n, c in zip(_SHARES, counts, strict=True))
    ]
    if not fitting:
        said = ", ".join(f"{name} {len(each)}" for name, each in values.items())
        raise Refused(f"{said}: SD1 takes 12, 1 and 12 numbers, SDXL 9, 3 and 9")
    parts: list[float] = []
    for name, count in zip(_SHARES, fitting[0], strict=True):
        parts += [w if w > threshold else 0.0 for w in values.get(name) or [1.0] * count]
    return tuple([1.0, *parts, 1.0] if fitting[0] == _COUNTS[1] else parts)


def _weights_of(name: str, text: str) -> list[float]:
    try:
        return [float(each) if each.strip() else 0.0 for each in text.strip("[]").split(",")]
    except ValueError:
        raise Refused(f"{name}: write its numbers out, not {text!r}") from None
