"""IA3: each input or output channel is made stronger or weaker, delta = W * w.

Liu et al. 2022 (arXiv 2205.05638); files as LyCORIS writes them, w being the factor less one (peft
stores the factor itself). As in LyCORIS' forward only the weight changes; with `on_bias`, as in
peft, the bias is scaled like the outputs that it belongs to.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError, working_dtype
from extensions_lib.adapters.parts import OfParts, number


@dataclass(eq=False)
class IA3(OfParts):
    """weight: one number per channel, [d], [1, d, 1, 1] or the like. It tells one size alone.

    alpha is kept and has no effect.
    """

    weight: Tensor
    on_input: bool = False
    alpha: float | None = None
    fixed_scale: float | None = None
    on_bias: bool = False

    kind: ClassVar[str] = "ia3"
    TITLE: ClassVar[str] = "an IA3"
    PARTS: ClassVar[Mapping[str, str]] = {"weight": "weight"}
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {"weight": (1, 2, 4)}

    def __post_init__(self) -> None:
        """Refuse anything that is not one row of numbers."""
        super().__post_init__()
        if max(self.weight.shape) != self.weight.numel():
            raise AdapterError(f"{self.said('weight')}: expected one number per channel")
        if self.on_bias and self.on_input:
            raise AdapterError("an IA3 of inputs does not change the bias")

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.weight.numel()
        return (-1, size, -1) if self.on_input else (size, -1)

    @property
    def changes_bias(self) -> bool:
        return self.on_bias

    def bias_delta(self, base_bias: Tensor | None) -> Tensor | None:
        if not self.on_bias:
            return None
        if base_bias is None:  # none that could be scaled
            return torch.zeros(self.weight.numel(), dtype=working_dtype(self.weight))
        if base_bias.numel() != self.weight.numel():
            sizes = f"expected {base_bias.numel()}, found {self.weight.numel()}"
            raise AdapterError(f"the factors do not fit the bias: {sizes}")
        dtype = working_dtype(self.weight, base_bias)
        factor = self.weight.to(base_bias.device, dtype).flatten()
        return self.scale * factor * base_bias.to(dtype)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        axis = 1 if self.on_input else 0
        spread = [-1 if each == axis else 1 for each in range(base.dim())]
        factor = self.weight.to(total.dtype).reshape(spread)
        return torch.addcmul(total, base, factor, value=self.scale * multiplier, out=out)

    def plain(self, dtype: torch.dtype) -> "IA3":
        return IA3(self.weight.to(dtype).flatten(), self.on_input, fixed_scale=self.fixed_scale)

    def rows(self, start: int, stop: int) -> "IA3":
        if self.on_input:
            return self
        return IA3(self.weight[start:stop], fixed_scale=self.fixed_scale)

    def tensors(self) -> dict[str, Tensor]:
        found = {**super().tensors(), "on_input": torch.tensor(int(self.on_input))}
        return {**found, "on_bias": torch.tensor(1)} if self.on_bias else found

    @classmethod
    def from_tensors(cls, parts: Mapping[str, Tensor]) -> Adapter:
        rest = dict(parts)
        side = number("on_input", rest.pop("on_input", None))
        if side not in (0, 1):
            found = "nothing" if side is None else f"{side:g}"
            raise AdapterError(f"an IA3 needs on_input, 0 or 1; found {found}")
        on_bias = number("on_bias", rest.pop("on_bias", None))
        return replace(cls._read(rest), on_input=bool(side), on_bias=bool(on_bias))

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return "weight" in part_names and "on_input" in part_names

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int | None = None,
        alpha: float | None = None,
        *,
        on_input: bool = False,
        generator: torch.Generator | None = None,
    ) -> "IA3":
        """A new one for a weight of this shape, which changes nothing yet: all zero.

        It has no rank and nothing is drawn.
        """
        axis = 1 if on_input else 0
        if len(shape) < 2:
            return cls(torch.zeros(shape[0]), False, alpha)
        sizes = [1, shape[axis], *[1] * (len(shape) - 2)] if len(shape) > 2 else [shape[axis]]
        return cls(torch.zeros(sizes), on_input, alpha)
