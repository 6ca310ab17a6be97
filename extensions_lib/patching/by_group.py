"""A layer whose samples have different weights: computed by group of samples, each with its own.

For networks of kinds that have no low-rank form. A group is the samples with the same weight; the
cost is one merged weight for each group, and no more computing than before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.patching.attach import Attached
from extensions_lib.patching.forwards import Around
from extensions_lib.patching.rows import Rows


class ByGroup:
    """Weights of one layer for each group of samples, in force from `put_in` to `take_out`.

    `of[picture]` is its group; `groups` has each group's merged parameters by name, none where the
    layer's own hold.
    """

    def __init__(
        self,
        module: nn.Module,
        of: Sequence[int],
        groups: Sequence[Mapping[str, Attached]],
        rows: Rows,
    ) -> None:
        self.groups = groups
        self._module, self._of, self._rows = module, of, rows
        self._around: Around | None = None

    def put_in(self) -> None:
        if self._around is None:
            self._around = Around(self._module, self)

    def take_out(self) -> None:
        if self._around is not None:
            self._around.remove()
            self._around = None

    @property
    def attached(self) -> list[Attached]:
        """Every merged parameter."""
        return [each for group in self.groups for each in group.values()]

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
            for name, attached in self.groups[group].items():
                attached.lead()
                self._module._parameters[name] = attached.stand_in
            return forward(x, *rest, **named)
        finally:
            self._module._parameters.update(own)
