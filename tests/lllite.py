"""Small random ControlNet-LLLite files as sd-scripts writes them, and their formula by hand.

from tests.lllite import lllite_file
path = lllite_file(tmp_path / "canny.safetensors", TINY["SDXL"])
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from extensions_lib.models import Structure, canonical_layers, flat_ldm

Array = NDArray[np.float64]
KERNELS = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}


def targets(structure: Structure) -> Iterator[tuple[str, str, int, int]]:
    """(canonical, name in a file, width, depth) of what sd-scripts trains: no output blocks.

    It does so on SDXL alone; on a UNet of more levels the deepest have no depth of theirs.
    """
    for canonical, info in canonical_layers(structure).items():
        block = re.match(r"unet\.(?:down_blocks\.(\d)|mid_block)\.", canonical)
        last = canonical.endswith(("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q"))
        if not block or not last:
            continue
        depth = int(block[1]) + 1 if block[1] else structure.unet.levels
        if depth in KERNELS:
            name = flat_ldm(canonical, structure).replace("lora_", "lllite_", 1)
            yield canonical, name, info.shape[1], depth


def side_parts(
    width: int, depth: int, *, cond: int = 8, mlp: int = 4, seed: int = 0, conv: bool = False
) -> dict[str, Tensor]:
    """The parts of one layer, none of them zero; `conv`: as beside a convolution."""
    generator = torch.Generator().manual_seed(seed)
    ones = (1, 1) if conv else ()

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / max(1, np.prod(shape[1:])) ** 0.5

    kernels = KERNELS[depth]
    sizes = [3, *[cond // 2] * (len(kernels) - 1), cond]
    parts = {}
    for number, kernel in enumerate(kernels):
        parts[f"conditioning1.{2 * number}.weight"] = noise(
            sizes[number + 1], sizes[number], kernel, kernel
        )
        parts[f"conditioning1.{2 * number}.bias"] = noise(sizes[number + 1]) * 0.1
    for name, out, into in (("down", mlp, width), ("mid", mlp, cond + mlp), ("up", width, mlp)):
        parts[f"{name}.0.weight"] = noise(out, into, *ones)
        parts[f"{name}.0.bias"] = noise(out) * 0.1
    return parts


def lllite_file(
    path: Path,
    structure: Structure,
    *,
    cond: int = 8,
    mlp: int = 4,
    seed: int = 0,
    strength: float = 1.0,
) -> Path:
    """Writes a file for every layer that sd-scripts trains and returns its path.

    strength: what all that is added is multiplied by.
    """
    tensors = {
        f"{name}.{part}": tensor * (strength if part.startswith("up.") else 1)
        for place, (_, name, width, depth) in enumerate(targets(structure))
        for part, tensor in side_parts(width, depth, cond=cond, mlp=mlp, seed=seed + place).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"modelspec.title": "made by a test"})
    return path


def by_hand(parts: Mapping[str, Tensor], picture: Array, x: Array) -> Array:
    """What is added to x [tokens, width] for a picture [3, h, w], in float64, in plain numpy."""
    held = {name: tensor.double().numpy() for name, tensor in parts.items()}

    def layer(name: str, value: Array) -> Array:
        weight = held[f"{name}.weight"].reshape(len(held[f"{name}.weight"]), -1)
        return value @ weight.T + held[f"{name}.bias"]

    grid = picture
    number = 0
    while f"conditioning1.{number}.weight" in held:
        if number:
            grid = grid.clip(0, None)
        kernel = held[f"conditioning1.{number}.weight"].shape[-1]
        height, width = (side // kernel for side in grid.shape[1:])
        patches = grid.reshape(len(grid), height, kernel, width, kernel)
        rows = patches.transpose(1, 3, 0, 2, 4).reshape(height, width, -1)
        grid = layer(f"conditioning1.{number}", rows).transpose(2, 0, 1)
        number += 2
    told = grid.reshape(len(grid), -1).T
    hidden = np.concatenate([told, layer("down.0", x).clip(0, None)], axis=1)
    return layer("up.0", layer("mid.0", hidden).clip(0, None))
