"""A host on small random checkpoints, and small random networks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.models import canonical_layers, flat
from tests.tiny import TINY, tiny_checkpoint

SIZE = 64


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's root with a checkpoint of each family, SD1 also as v-prediction."""
    root = tmp_path_factory.mktemp("host")
    folder = root / "models" / "Stable-diffusion"
    for family in TINY:
        tiny_checkpoint(folder / f"{family}.safetensors", family)
    tiny_checkpoint(folder / "SD1v.safetensors", "SD1", v_pred=True)
    return root


@pytest.fixture(scope="session")
def hosts(root: Path) -> Iterator[Callable[[str], StandaloneHost]]:
    """`hosts("SD1")` is one loaded host a checkpoint for the whole session."""
    made: dict[str, StandaloneHost] = {}

    def host(name: str = "SD1") -> StandaloneHost:
        if name not in made:
            made[name] = StandaloneHost(name, root)
        return made[name]

    yield host
    for each in made.values():
        each.close()


@pytest.fixture
def host(hosts: Callable[[str], StandaloneHost]) -> StandaloneHost:
    return hosts("SD1")


def order(prompt: str = "a cat", **other: object) -> GenerationRequest:
    """A small order; four steps of Euler unless told otherwise."""
    plan: dict[str, object] = {
        "negative": "bad",
        "steps": 4,
        "sampler": "Euler",
        "seed": 7,
        "width": SIZE,
        "height": SIZE,
    }
    return GenerationRequest(prompt, **(plan | other))  # type: ignore[arg-type]


def tiny_lora(path: Path, seed: int, family: str = "SD1", rank: int = 2) -> Path:
    """A LoRA on some attention layers of UNet and text encoder, with kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for canonical, info in canonical_layers(TINY[family]).items():
        if not canonical.endswith(("attn1.to_q", "attn2.to_k", "self_attn.v_proj")):
            continue
        stem, (out, into) = flat(canonical), info.shape[:2]
        if family == "SDXL":
            stem = stem.replace("lora_te_", "lora_te1_")
        tensors[f"{stem}.lora_up.weight"] = torch.randn(out, rank, generator=generator) * 0.2
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, into, generator=generator) * 0.2
        tensors[f"{stem}.alpha"] = torch.tensor(float(rank))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
