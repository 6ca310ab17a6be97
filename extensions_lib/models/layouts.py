"""A checkpoint's tensors (ldm) and those of its components in diffusers: which is where.

One tensor of a component is a tensor of the checkpoint, some rows of a fused one, its transpose, or
the same numbers in another shape (1x1 convolutions and linear layers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from extensions_lib.models.families import Structure
from extensions_lib.models.names import (
    canonical_layers,
    checkpoint_shapes,
    component_of,
    places,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A tensor of a component in diffusers, and where it lies in a checkpoint."""

    component: str  # "unet", "te1", "te2" or "vae"
    name: str  # its key in the component's own state dict
    shape: tuple[int, ...]
    layer: str  # the canonical layer
    key: str  # of the checkpoint's tensor
    rows: slice | None = None
    transposed: bool = False

    def taken(self, stored: Tensor) -> Tensor:
        """It from the checkpoint's tensor, a view where that is possible."""
        part = stored if self.rows is None else stored[self.rows]
        return (part.T if self.transposed else part).reshape(self.shape)


@lru_cache(maxsize=16)
def parts(structure: Structure) -> tuple[Part, ...]:
    """Every tensor of every component, in the order of the layers."""
    there, here = places(structure, "ldm"), places(structure, "diffusers")
    found = []
    for layer, info in canonical_layers(structure).items():
        source, within, component = there[layer], here[layer].within, component_of(layer)
        found.append(
            Part(
                component,
                f"{within}.weight",
                info.shape,
                layer,
                source.key,
                source.rows,
                source.transposed,
            )
        )
        if info.bias:
            shape = info.shape[:1]
            bias = Part(component, f"{within}.bias", shape, layer, source.bias_key, source.rows)
            found.append(bias)
    return tuple(found)


def component_states(
    tensors: Mapping[str, Tensor], structure: Structure
) -> dict[str, dict[str, Tensor]]:
    """Checkpoint tensors (ldm keys) as one diffusers/transformers state dict a component.

    The tensors are views of the given ones.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for part in parts(structure):
        states.setdefault(part.component, {})[part.name] = part.taken(tensors[part.key])
    return states


@lru_cache(maxsize=16)
def pieces(structure: Structure) -> Mapping[str, tuple[Part, ...]]:
    """Key of a checkpoint -> the parts that lie in it, in the order of their rows."""
    found: dict[str, list[Part]] = {key: [] for key in checkpoint_shapes(structure)}
    for part in parts(structure):
        found[part.key].append(part)
    return {
        key: tuple(sorted(own, key=lambda part: part.rows.start if part.rows else 0))
        for key, own in found.items()
    }


def put_together(own: Sequence[Part], tensors: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """A checkpoint's tensor from its parts: what `Part.taken` takes apart."""
    import torch

    turned = [
        tensor.T if part.transposed else tensor for part, tensor in zip(own, tensors, strict=True)
    ]
    whole = turned[0] if len(turned) == 1 else torch.cat(turned)
    return whole.reshape(shape)
