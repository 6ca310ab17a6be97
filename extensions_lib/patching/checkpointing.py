"""Gradient checkpointing: blocks of a model forget what is inside them and compute it again.

It takes memory from the backward pass and gives it a second forward pass to do. The blocks are the
residual blocks and transformer blocks of the UNet and the layers of the text encoders, in any tree
that holds them; switches of the hosts themselves are not asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from extensions_lib.models.loaded import LoadedModel
from extensions_lib.models.names import component_of
from extensions_lib.patching.forwards import Standing

_BLOCK = re.compile(
    r"unet\..*\.(?:resnets|transformer_blocks)\.\d+\.|te\d\.text_model\.encoder\.layers\.\d+\."
)


def blocks(model: LoadedModel) -> dict[str, nn.Module]:
    """The modules to be checkpointed, by canonical name, in the order of the walk."""
    paths: dict[str, list[str]] = {}
    for canonical, place in model.layers.items():
        if match := _BLOCK.match(canonical):
            within = place.within.split(".")
            name = match[0].rstrip(".")
            paths[name] = _common(paths[name], within) if name in paths else within
    return {
        name: model.component(component_of(name)).get_submodule(".".join(path))
        for name, path in paths.items()
    }


def _common(one: list[str], other: list[str]) -> list[str]:
    """The leading parts that two paths share."""
    length = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    return one[:length]


class Checkpointing(Standing):
    """Stands around the blocks of a model.

    Whatever else is around a block's forward comes first: adapters and hooks inside the blocks are
    part of what is computed again, and see torch's own generators as they were.
    """

    def __init__(self, model: LoadedModel) -> None:
        super().__init__([(block, _again) for block in blocks(model).values()])


def _again(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    return checkpoint(forward, *args, use_reentrant=False, **named)
