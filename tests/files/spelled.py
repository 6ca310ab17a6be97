"""Networks of many layers under any names, and the check that they are read as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.adapters import LoRA
from extensions_lib.files.networks import Network, read_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header, write_safetensors
from extensions_lib.models.families import SD15, SD21, SDXL_BASE, Structure
from extensions_lib.models.names import canonical_layers

STRUCTURES = {"SD1": SD15, "SD2": SD21, "SDXL": SDXL_BASE}
EVERY = pytest.mark.parametrize("family", list(STRUCTURES))
Pairs = dict[str, tuple[Tensor, Tensor]]
TREES = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
PEFT_ENDS = ("lora_B.weight", "lora_A.weight")
KOHYA_ENDS = ("lora_up.weight", "lora_down.weight")


def pairs(structure: Structure, text: str, most: int = 24, seed: int = 0) -> Pairs:
    """(up, down) of rank 2 for some layers whose names match `text`, spread over the model."""
    generator = torch.Generator().manual_seed(seed)
    found = [
        (layer, info)
        for layer, info in canonical_layers(structure).items()
        if re.search(text, layer) and info.kind in ("linear", "conv") and layer[:3] != "vae"
    ]
    made: Pairs = {}
    for layer, info in found[:: max(1, len(found) // most)]:
        out, *rest = info.shape
        ones = [1] * (len(rest) - 1)
        up = torch.randn(out, 2, *ones, generator=generator)
        made[layer] = up, torch.randn(2, *rest, generator=generator)
    return made


def dotted(layer: str) -> str:
    component, _, path = layer.partition(".")
    return f"{TREES[component]}.{path}"


def check(path: Path, given: Pairs, scale: float = 1.0, structure: Structure | None = None) -> Network:  # fmt: skip  # noqa: E501
    network = read_network(path, structure=structure)
    assert (network.unmatched, network.problems) == ([], [])
    assert network.adapters.keys() == given.keys()
    for layer, (up, down) in given.items():
        adapter = network.adapters[layer]
        assert isinstance(adapter, LoRA)
        assert torch.equal(adapter.up, up.to(adapter.up.dtype))
        assert torch.equal(adapter.down, down.to(adapter.down.dtype))
        assert adapter.scale == pytest.approx(scale)
    facts = facts_of(read_any_header(path).shapes)
    if structure is None:
        assert facts.layers == len(given)
        assert facts.family is network.family
    return network


def wrote(path: Path, given: Pairs, name: Callable[[str], str], ends: tuple[str, str], alpha: float | None = None) -> Path:  # fmt: skip  # noqa: E501
    tensors = {}
    for layer, (up, down) in given.items():
        tensors |= {f"{name(layer)}.{ends[0]}": up, f"{name(layer)}.{ends[1]}": down}
        if alpha is not None:
            tensors[f"{name(layer)}.alpha"] = torch.tensor(alpha)
    write_safetensors(path, tensors)
    return path
