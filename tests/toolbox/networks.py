"""Small networks of every kind for the tools, on layers that SD1 has at full size."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from extensions_lib.adapters import Adapter, adapter_from
from extensions_lib.files.networks import write_network

Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
K = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.down_blocks.0.resnets.1.conv1"
PROJ = "unet.down_blocks.0.attentions.0.proj_in"
TEXT = "te1.text_model.encoder.layers.0.mlp.fc1"
NORM = "unet.conv_norm_out"
SHAPES = {
    Q: (320, 320), K: (640, 768), CONV: (320, 320, 3, 3), PROJ: (320, 320, 1, 1),
    TEXT: (3072, 768), NORM: (320,),
}  # fmt: skip


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def lora(layer: str, rank: int, alpha: float | None, seed: int) -> Adapter:
    out, inputs, *kernel = SHAPES[layer]
    parts = {
        "lora_up.weight": noise(seed, out, rank, *[1] * len(kernel)) * 0.05,
        "lora_down.weight": noise(seed + 1, rank, inputs, *kernel) * 0.05,
    }
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    return adapter_from(parts)


def loha(layer: str, rank: int, seed: int) -> Adapter:
    out, inputs = SHAPES[layer]
    a, b = (out, rank), (rank, inputs)
    shapes = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
    parts = {name: noise(seed + i, *shape) * 0.2 for i, (name, shape) in enumerate(shapes.items())}
    return adapter_from({**parts, "alpha": torch.tensor(rank / 2)})


def lokr(layer: str, seed: int) -> Adapter:
    out, inputs = SHAPES[layer]
    parts = {
        "lokr_w1": noise(seed, 8, 8) * 0.1,
        "lokr_w2_a": noise(seed + 1, out // 8, 3) * 0.1,
        "lokr_w2_b": noise(seed + 2, 3, inputs // 8) * 0.1,
        "alpha": torch.tensor(3.0),
    }
    return adapter_from(parts)


def written(path: Path, adapters: dict[str, Adapter], **metadata: str) -> Path:
    write_network(path, adapters, metadata)
    return path


def exact(adapter: Adapter, shape: tuple[int, ...]) -> Tensor:
    """Its change in float64, by the adapters' own algebra on a weight of zeros."""
    double = adapter_from(
        {k: v.double() if v.is_floating_point() else v for k, v in adapter.tensors().items()}
    )
    return double.delta(torch.zeros(shape, dtype=torch.float64))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one
    )


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
