"""Parts that PEFT alone writes, brought to those that the adapters know; where that is exact.

PEFT (github.com/huggingface/peft, read at 0.21) keeps what decides their meaning in
`adapter_config.json`. Its OFT and BOFT rotate a layer's inputs by the Cayley transform
R = (I - Q) (I + Q)^-1 of a skew Q; OFT may take the first terms of its series instead, and hold Q
to a norm. Its IA3 scales inputs, or outputs with the bias; AdaLoRA has singular values between its
factors. LoHa and LoKr are LyCORIS' own.

OneTrainer (github.com/Nerogar/OneTrainer, read at 2026-08) writes its OFT under PEFT's names and
without a config: always five terms of the series; one row is one block for all. A convolution has
W R where PEFT and its own linear layers have W R^T. With `scaled_oft` Q is divided by
2 sqrt(b - 1), b being the size of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extensions_lib.files.peft_config import PeftConfig, means

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.models.names import LayerInfo

Parts = dict[str, "Tensor"]
PEFT_ALONE = ("oft_R", "boft_R", "ia3_l", "lora_E", "lora_B.bias")
_MOST_TERMS = 100  # the powers of so small a Q are long nothing
_NO_CONFIG = "without the adapter_config.json that PEFT saved beside it"
_ONETRAINER = {"use_cayley_neumann": True, "num_cayley_neumann_terms": 5, "block_share": True}


class PeftMistake(ValueError):
    """Parts that cannot be brought over; the text says why."""


def standard_peft(
    layer: str,
    parts: Parts,
    config: PeftConfig,
    infos: Sequence[LayerInfo],
    *,
    onetrainer: bool = False,
) -> Parts:
    """The parts of a layer, those of PEFT alone in the adapters' form; others as they are.

    infos: the layer in the models that have it, the likeliest first. onetrainer: OneTrainer wrote
    the parts, and not PEFT. Raises PeftMistake.
    """
    info = infos[0] if infos else None
    mark = next((name for name in PEFT_ALONE if name in parts), None)
    if mark and any(part.is_complex() for part in parts.values()):
        raise PeftMistake(f"has {mark} with complex numbers")
    if mark in ("oft_R", "boft_R"):
        _check_size(mark, parts[mark], infos)
    if mark == "oft_R":
        if not onetrainer or config.of(layer):
            return _oft(parts, config.of(layer))
        turn = _oft(parts, _ONETRAINER)["oft_in"]
        return {"oft_in": turn.mT if info is not None and info.kind == "conv" else turn}
    if mark == "boft_R":
        return _boft(parts)
    if mark == "ia3_l":
        return _ia3(layer, parts, config.of(layer), info)
    if mark == "lora_E":
        return _adalora(parts, config.of(layer), info)
    return _biased(parts, layer, config) if mark == "lora_B.bias" else parts


def _check_size(name: str, part: Tensor, infos: Sequence[LayerInfo]) -> None:
    """Refuses blocks that no layer has the inputs for, before anything is computed with them."""
    size = _size(part) if name == "oft_R" else part.shape[-1] if part.dim() else 0
    inputs = max((math.prod(info.shape[1:]) for info in infos), default=size)
    if size > inputs:
        raise PeftMistake(f"{name} has blocks of {size}, of a layer with {inputs} inputs")


def _size(triangles: Tensor) -> int:
    """The size b of blocks of which b (b - 1) / 2 numbers are kept; 0 for no rows of numbers."""
    return (1 + math.isqrt(1 + 8 * triangles.shape[-1])) // 2 if triangles.dim() == 2 else 0


def _oft(parts: Parts, options: Mapping[str, Any]) -> Parts:
    """oft_R [n, b (b - 1) / 2]: the upper triangles of n skew blocks, or of one for all."""
    import torch

    found = parts["oft_R"]
    if not options:
        raise PeftMistake(f"is PEFT's OFT, which has no one meaning {_NO_CONFIG}")
    size = _size(found)
    if size < 2 or size * (size - 1) // 2 != found.shape[-1] or not found.is_floating_point():
        raise PeftMistake(f"oft_R is {list(found.shape)}: expected rows of b (b - 1) / 2 numbers")
    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(len(found), size, size)
    skew[:, rows, columns] = found.float()
    skew = skew - skew.mT
    if "scaled_oft" in parts:
        skew = skew / (2 * math.sqrt(size - 1))
    if options.get("coft") is True:
        skew = _held(skew, _number(options, "eps", 6e-5))
    if options.get("use_cayley_neumann") is True:
        turn = _series(skew, round(_number(options, "num_cayley_neumann_terms", 5)))
    else:
        turn = _cayley(skew)
    shared = options.get("block_share") is True and len(turn) == 1
    return {"oft_in": turn[0] if shared else turn}


def _cayley(skew: Tensor) -> Tensor:
    """R - I of R = (I - Q) (I + Q)^-1, as -2 Q (I + Q)^-1: that keeps the digits of small turns."""
    import torch

    one = torch.eye(skew.shape[-1])
    return torch.linalg.solve(one + skew, -2 * skew, left=False)


def _series(skew: Tensor, terms: int) -> Tensor:
    """R - I of the first terms of I + 2 Q + 2 Q^2 + ..., the last of them but once.

    As PEFT has it: the sign of Q is the other one than in the exact transform, and three terms are
    the same as four.
    """
    if terms < 2:
        return skew * 0
    total = 2 * skew
    if terms > 2:
        power = skew @ skew
        total = total + 2 * power
        for _ in range(3, min(terms, _MOST_TERMS) - 1):
            power = power @ skew
            total = total + 2 * power
        total = total + power @ skew
    return total


def _held(skew: Tensor, most: float) -> Tensor:
    """Each block held to the norm most / sqrt(n), as constrained OFT does before each use."""
    import torch

    limit = most / math.sqrt(len(skew))
    norm = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
    return torch.where(norm <= limit, skew, skew * (limit / norm.clamp_min(1e-30)))


def _boft(parts: Parts) -> Parts:
    """boft_R [m, n, b, b], of which Q is the skew half; boft_s [out, 1] or [1, out]."""
    found, gains = parts["boft_R"], parts.get("boft_s")
    if found.dim() != 4 or found.shape[-1] != found.shape[-2] or not found.is_floating_point():
        raise PeftMistake(f"boft_R is {list(found.shape)}: expected square blocks in stages")
    if gains is None:
        raise PeftMistake("has boft_R without boft_s")
    blocks = found.float()
    return {"oft_in": _cayley((blocks - blocks.mT) / 2), "rescale": gains.float().flatten()}


def _ia3(layer: str, parts: Parts, options: Mapping[str, Any], info: LayerInfo | None) -> Parts:
    """ia3_l: factors, [1, in] of inputs or [out, 1] of outputs; a convolution's do not tell."""
    import torch

    found = parts["ia3_l"]
    if found.dim() not in (2, 4) or max(found.shape) != found.numel() or not found.numel():
        raise PeftMistake(f"ia3_l is {list(found.shape)}: expected one factor per channel")
    on_input = found.shape[0] == 1 and found.shape[1] > 1
    if found.dim() == 4 or found.numel() == 1:
        if not options:
            raise PeftMistake(f"is PEFT's IA3 of inputs or of outputs: unknown {_NO_CONFIG}")
        on_input = means(options.get("feedforward_modules"), layer)
    standard = {"weight": found.float().flatten() - 1, "on_input": torch.tensor(int(on_input))}
    has_bias = info is None or info.bias
    return standard if on_input or not has_bias else {**standard, "on_bias": torch.tensor(1)}


def _adalora(parts: Parts, options: Mapping[str, Any], info: LayerInfo | None) -> Parts:
    """up (E down) alpha / (n + 1e-5), n: ranks at its start; E [r, 1], down [r, in * kernel]."""
    import torch

    values, down = parts["lora_E"], parts.get("lora_down.weight")
    if down is None or "lora_up.weight" not in parts or values.shape != (len(down), 1):
        raise PeftMistake("is an AdaLoRA with parts that do not fit one another")
    if not options:
        raise PeftMistake(f"is an AdaLoRA, whose strength is unknown {_NO_CONFIG}")
    rest = {name: part for name, part in parts.items() if name != "lora_E"}
    rank = len(down)
    alpha, began = _number(options, "lora_alpha", 8.0), _number(options, "init_r", 12.0)
    scaled = torch.tensor((alpha if alpha > 0 else rank) * rank / (began + 1e-5))
    scaled_down = down * values
    if info is not None and down.shape[1] == math.prod(info.shape[1:]):
        scaled_down = scaled_down.view(rank, *info.shape[1:])
    return {**rest, "lora_down.weight": scaled_down, "alpha": scaled}


def _biased(parts: Parts, layer: str, config: PeftConfig) -> Parts:
    """A bias of the factor `up` is scaled as their product is."""
    down = parts.get("lora_down.weight")
    rank = len(down) if down is not None else 0
    alpha = config.alpha(layer, rank) if rank else None
    if alpha is None and "alpha" in parts:
        alpha = float(parts["alpha"])
    if alpha is None:
        raise PeftMistake(f"has a bias of its own, whose strength is unknown {_NO_CONFIG}")
    rest = {name: part for name, part in parts.items() if name != "lora_B.bias"}
    return {**rest, "diff_b": parts["lora_B.bias"].float() * (alpha / rank)}


def _number(options: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = options.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise PeftMistake(f"has {name} {value!r} in its adapter_config.json: expected a number")
    return float(value)
