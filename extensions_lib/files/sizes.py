"""The size of the weight that a layer's parts were made for, told by their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def sizes(parts: Shapes) -> tuple[int, int] | None:
    """(out, in·kernel or in) of the weight that a layer's parts were made for, where they tell."""
    try:
        if "lora_up.weight" in parts:
            return parts["lora_up.weight"][0], parts["lora_down.weight"][1]
        if "hada_t1" in parts:
            return parts["hada_w1_a"][1], parts["hada_w1_b"][1]
        if "hada_w1_a" in parts:
            return parts["hada_w1_a"][0], parts["hada_w1_b"][1]
        if "lokr_w1" in parts or "lokr_w1_a" in parts:
            first, second = _factor(parts, "lokr_w1"), _factor(parts, "lokr_w2")
            return first[0] * second[0], first[1] * second[1]
        if "b1.weight" in parts:
            return _glora_sizes(parts)
        if len(parts.get("diff", ())) > 1:
            return parts["diff"][0], math.prod(parts["diff"][1:])
    except (KeyError, IndexError):
        pass  # a broken layer tells nothing; reading it says what is wrong
    return None


def _glora_sizes(parts: Shapes) -> tuple[int, int]:
    """b1 [out, r] and b2 [r, in] since LyCORIS 3.0, b2 [out, r] and b1 [r, in] before it."""
    first, second = parts["b1.weight"], parts["b2.weight"]
    old = first[1] != second[0] or parts["a1.weight"][1] != first[1]
    return (second[0], first[1]) if old else (first[0], second[1])


def outputs(parts: Shapes) -> int | None:
    """The length of the output axis, for the algorithms that tell only that."""
    for name in ("w_norm", "b_norm", "diff_b", "diff"):
        if len(parts.get(name, ())) == 1:
            return parts[name][0]
    gains = parts.get("boft_s", parts.get("rescale", ()) if "oft_in" in parts else ())
    if gains:
        return math.prod(gains)
    factors = parts.get("ia3_l", ())
    if len(factors) == 2 and factors[1] == 1:
        return factors[0]
    blocks = parts.get("oft_blocks", parts.get("oft_diag", ()))
    return blocks[-3] * blocks[-1] if len(blocks) in (3, 4) else None


def columns_of(parts: Shapes) -> int | None:
    """The length of the input axis, kernel and all, for the algorithms that tell only that."""
    factors = parts.get("ia3_l", ())
    if len(factors) == 2 and factors[0] == 1:
        return factors[1]
    triangles = parts.get("oft_R", ())
    if len(triangles) == 2 and triangles[0] > 1:  # one may be for all blocks
        return triangles[0] * (1 + math.isqrt(1 + 8 * triangles[1])) // 2
    blocks = parts.get("boft_R", parts.get("oft_in", ()))
    return blocks[-3] * blocks[-1] if len(blocks) in (3, 4) else None


def _factor(parts: Shapes, name: str) -> tuple[int, int]:
    if name in parts:
        return parts[name][0], parts[name][1]
    transposed = name.endswith("w2") and "lokr_t2" in parts
    return parts[f"{name}_a"][1 if transposed else 0], parts[f"{name}_b"][1]
