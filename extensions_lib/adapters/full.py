"""Full: the change itself, diff of the weight's shape and diff_b for the bias.

LyCORIS' "full" and what extraction tools write for small layers. A stored scale counts for diff
alone, as in A1111; alpha is kept and has no effect.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import AdapterError, working_dtype
from extensions_lib.adapters.parts import OfParts


@dataclass(eq=False)
class Full(OfParts):
    """diff [out, in, *k] or [n] (a norm); diff_b [out]; one of the two may be missing."""

    diff: Tensor | None = None
    diff_b: Tensor | None = None
    alpha: float | None = None
    fixed_scale: float | None = None

    kind: ClassVar[str] = "full"
    TITLE: ClassVar[str] = "a full change"
    PARTS: ClassVar[Mapping[str, str]] = {"diff": "diff", "diff_b": "diff_b"}
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {"diff": (1, 2, 4), "diff_b": (1,)}

    def __post_init__(self) -> None:
        """Refuse nothing at all, and a bias for another layer."""
        super().__post_init__()
        diff, bias = self.diff, self.diff_b
        if diff is None and bias is None:
            raise AdapterError(f"{self.TITLE} needs {' or '.join(self.PARTS.values())}")
        if diff is not None and bias is not None and diff.shape[0] != bias.shape[0]:
            raise AdapterError(f"weight and bias have different sizes: {self.said()}")

    @property
    def shape(self) -> tuple[int, ...]:
        if self.diff is not None:
            return tuple(self.diff.shape)
        assert self.diff_b is not None
        return (self.diff_b.shape[0], -1)

    @property
    def changes_weight(self) -> bool:
        return self.diff is not None

    @property
    def changes_bias(self) -> bool:
        return self.diff_b is not None

    def bias_delta(self, base_bias: Tensor | None) -> Tensor | None:
        return bias_change(self.diff_b, base_bias)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        if self.diff is None:
            return total.clone() if out is None else out.copy_(total)
        diff = self.diff.to(total.dtype).reshape(base.shape)
        return torch.add(total, diff, alpha=self.scale * multiplier, out=out)

    def rows(self, start: int, stop: int) -> "Full":
        return self if self.diff is None else replace(self, diff=self.diff[start:stop], diff_b=None)

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return any(part in part_names for part in cls.PARTS.values())

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int | None = None,
        alpha: float | None = None,
        *,
        bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> "Full":
        """A new one for a weight of this shape, which changes nothing yet: all zero.

        It has no rank and nothing is drawn; `bias`: the layer has one that is to be trained too.
        """
        return cls(torch.zeros(*shape), torch.zeros(shape[0]) if bias else None, alpha)


def bias_change(change: Tensor | None, base_bias: Tensor | None) -> Tensor | None:
    """The change in the working precision. Raises AdapterError where it does not fit the bias."""
    if change is None:
        return None
    if base_bias is None:
        return change.to(working_dtype(change))
    if change.shape != base_bias.shape:
        shapes = f"expected {list(base_bias.shape)}, found {list(change.shape)}"
        raise AdapterError(f"the change of the bias does not fit: {shapes}")
    return change.to(base_bias.device, working_dtype(change, base_bias))
