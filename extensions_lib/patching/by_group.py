"""A layer whose samples have different weights: computed by group of samples, each with its own.

For networks of kinds that have no low-rank form. A group is the samples with the same weight. The
merged weights of each are kept (`Kept`: their memory is the cost), or made in each pass from what a
host has there by then (`Anew`: time is).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.patching.attach import Attached, Recipe, write
from extensions_lib.patching.forwards import Around
from extensions_lib.patching.layout import Groups
from extensions_lib.patching.rows import Rows


class ByGroup(ABC):
    """Weights of one layer for each group of samples, in force from `put_in` to `take_out`."""

    def __init__(self, groups: Groups, rows: Rows) -> None:
        self._module, self._of, self._rows = groups.module, groups.of, rows
        self._around: Around | None = None

    @abstractmethod
    def _held(self, group: int, x: Tensor) -> Mapping[str, nn.Parameter]:
        """A group's parameters by name, none where the layer's own hold; x is the layer's input."""

    @property
    def attached(self) -> list[Attached]:
        """Every merged parameter that is kept."""
        return []

    def put_in(self) -> None:
        if self._around is None:
            self._around = Around(self._module, self)

    def take_out(self) -> None:
        if self._around is not None:
            self._around.remove()
            self._around = None

    def __call__(self, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Any:
        """The answers of all groups, in the order of the samples."""
        groups: dict[int, list[int]] = {}
        for sample, picture in enumerate(self._rows.among(len(x))):
            groups.setdefault(self._of[picture], []).append(sample)
        if len(groups) == 1:
            return self._answer(next(iter(groups)), forward, x, *rest, **named)
        out = None
        for group, samples in groups.items():
            index = self._rows.indices(samples, x.device)
            y = self._answer(group, forward, x.index_select(0, index), *rest, **named)
            if out is None:
                out = y.new_empty((len(x), *y.shape[1:]))
            put = out.index_copy if torch.is_grad_enabled() else out.index_copy_
            out = put(0, index, y)
        return out

    def _answer(
        self, group: int, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        own = dict(self._module._parameters)
        try:
            self._module._parameters.update(self._held(group, x))
            return forward(x, *rest, **named)
        finally:
            self._module._parameters.update(own)


class Kept(ByGroup):
    """`merged`: the parameters of each group, made before."""

    def __init__(
        self, groups: Groups, merged: Sequence[Mapping[str, Attached]], rows: Rows
    ) -> None:
        super().__init__(groups, rows)
        self._merged = merged

    @property
    def attached(self) -> list[Attached]:
        return [each for group in self._merged for each in group.values()]

    def _held(self, group: int, x: Tensor) -> Mapping[str, nn.Parameter]:
        for each in self._merged[group].values():
            each.lead()
        return {name: each.stand_in for name, each in self._merged[group].items()}


class Anew(ByGroup):
    """Merged where the layer's input is, in its type, out of what the module holds in that pass."""

    def __init__(self, groups: Groups, rows: Rows) -> None:
        super().__init__(groups, rows)
        self._recipes = groups.recipes

    def _held(self, group: int, x: Tensor) -> Mapping[str, nn.Parameter]:
        return {name: _made(recipe, x) for name, recipe in self._recipes[group].items()}


def _made(recipe: Recipe, x: Tensor) -> nn.Parameter:
    base = recipe.original()[0].detach().to(x.device)
    out = torch.empty_like(base, dtype=x.dtype)
    write(out, base, recipe.to(x.device))
    return nn.Parameter(out, requires_grad=False)
