"""What ComfyUI's own trainer means otherwise than the programs that it took the names from.

Its node "Train LoRA" (github.com/comfyanonymous/ComfyUI, comfy/weight_adapter, read at 2026-02)
keeps the factors of a convolution as matrices, down [r, in * kernel] and up [out, r]. Where kohya
and LyCORIS hold the blocks of an OFT or BOFT to the norm alpha * out, ComfyUI holds them to alpha,
in training and of any file that it loads. Needs no torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from extensions_lib.files.sizes import Shape, outputs
from extensions_lib.models.families import Structure
from extensions_lib.models.names import canonical_layers

Value = TypeVar("Value")
SCHEME = "ComfyUI"  # as files.schemes.tell names it
_UP, _DOWN = "lora_up.weight", "lora_down.weight"


def with_kernel(
    layer: str,
    parts: dict[str, Value],
    structures: Sequence[Structure],
    shape: Callable[[Value], Shape],
    view: Callable[[Value, Shape], Value],
) -> dict[str, Value]:
    """The parts of a layer, factors that are matrices with the kernel of the layer; no copies."""
    up, down = parts.get(_UP), parts.get(_DOWN)
    if up is None or down is None or "lora_mid.weight" in parts:
        return parts
    kernel = next((_kernels(each)[layer] for each in structures if layer in _kernels(each)), ())
    rows, columns = shape(up), shape(down)
    if not kernel or len(rows) != 2 or len(columns) != 2 or columns[1] % math.prod(kernel):
        return parts
    inputs = columns[1] // math.prod(kernel)
    wide = view(down, (columns[0], inputs, *kernel))
    return {**parts, _UP: view(up, (*rows, *[1] * len(kernel))), _DOWN: wide}


@functools.lru_cache(maxsize=8)
def _kernels(structure: Structure) -> dict[str, Shape]:
    """Layer -> kernel, of the convolutions that have more than a point."""
    return {
        layer: info.shape[2:]
        for layer, info in canonical_layers(structure).items()
        if math.prod(info.shape[2:]) > 1
    }


def held_outputs(shapes: dict[str, Shape]) -> int | None:
    """What alpha is to be divided by, read from ComfyUI, and multiplied with, written for it."""
    return outputs(shapes) if "oft_blocks" in shapes and "alpha" in shapes else None
