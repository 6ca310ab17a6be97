"""A small model and networks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn

from extensions_lib.adapters import Adapter
from tests.adapters.factors import random_lora


class Tree(nn.Module):
    """Every way in which a weight can lie in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 12)
        self.other = nn.Linear(10, 12)
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.fused = nn.MultiheadAttention(8, 2)
        self.text = nn.Linear(10, 12)
        self.project = nn.Module()
        self.project.text_projection = nn.Parameter(torch.randn(8, 12))


class StandIn:
    """What a LoadedModel is to the rooms above it."""

    # canonical: path, parameter, rows, transposed, shape of the weight
    PLACES: ClassVar[dict[str, tuple[str, str, slice | None, bool, tuple[int, ...]]]] = {
        "unet.linear": ("linear", "weight", None, False, (12, 10)),
        "unet.other": ("other", "weight", None, False, (12, 10)),
        "unet.conv": ("conv", "weight", None, False, (8, 6, 3, 3)),
        "te1.text": ("text", "weight", None, False, (12, 10)),
        "te2.q": ("fused", "in_proj_weight", slice(0, 8), False, (8, 8)),
        "te2.v": ("fused", "in_proj_weight", slice(16, 24), False, (8, 8)),
        "te2.out": ("fused.out_proj", "weight", None, False, (8, 8)),
        "te2.project": ("project", "text_projection", None, True, (12, 8)),
    }

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(3)
        self.tree = Tree().to(dtype)
        self.layers = {
            name: SimpleNamespace(transposed=place[3]) for name, place in self.PLACES.items()
        }

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]:
        path, parameter, rows, _, _ = self.PLACES[canonical]
        return self.tree.get_submodule(path), parameter, rows

    def weight(self, canonical: str) -> torch.Tensor:
        """The layer's weight as it is now."""
        module, name, rows = self.layer(canonical)
        weight = module._parameters[name].detach()
        weight = weight if rows is None else weight[rows]
        return weight.t() if self.PLACES[canonical][3] else weight


@dataclass
class Net:
    name: str
    key: str
    adapters: dict[str, Adapter] = field(default_factory=dict)


def network(seed: int, layers: list[str] | None = None, key: str | None = None) -> Net:
    """A network for some layers of the stand-in, all by default."""
    return Net(
        f"net{seed}",
        key or f"key{seed}",
        {
            name: random_lora(StandIn.PLACES[name][4], seed=100 * seed + number)
            for number, name in enumerate(StandIn.PLACES)
            if layers is None or name in layers
        },
    )


class Bits:
    """All parameters of a module, as objects and as values."""

    def __init__(self, tree: nn.Module) -> None:
        self.tree = tree
        self.objects = dict(tree.named_parameters())
        self.values = {name: each.detach().clone() for name, each in self.objects.items()}

    def untouched(self) -> bool:
        """Whether every parameter is the same object with the same bits."""
        now = dict(self.tree.named_parameters())
        return list(now) == list(self.objects) and all(
            now[name] is self.objects[name] and torch.equal(now[name], self.values[name])
            for name in now
        )

    def bases_untouched(self) -> bool:
        """Whether the bits of the originals are as they were, wherever they are now."""
        return all(torch.equal(self.objects[name], self.values[name]) for name in self.objects)
