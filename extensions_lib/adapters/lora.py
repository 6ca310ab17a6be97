"""LoRA and LoCon: the change is a product of two thin factors, delta = alpha/r * U @ D.

Hu et al. 2021 (arXiv 2106.09685) for linear layers. A k x k convolution has down [r, in, kh, kw]
and up [out, r, 1, 1]; its Tucker form keeps both at 1x1 and puts the kernel into a core, mid
[r, r, kh, kw] (Hyeon-Woo et al. 2021, arXiv 2108.06098). LoRA-FA, LoRA+, rs-LoRA and DyLoRA
differ in how they are trained; their files are LoRA (rs-LoRA with sqrt(r) put into alpha).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import (
    AdapterError,
    LowRank,
    full_precision,
    pad_inputs,
    working_dtype,
)
from extensions_lib.adapters.parts import OfParts, as_matrix, positive

PARTS = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}


@dataclass(eq=False)
class LoRA(OfParts):
    """up [out, r(,1,1)], down [r, in(,kh,kw)], mid [r, r, kh, kw] or None; alpha None: scale 1.

    `fixed_scale` is a stored scale, which overrides alpha / r.
    """

    up: Tensor
    down: Tensor
    mid: Tensor | None = None
    alpha: float | None = None
    fixed_scale: float | None = None

    kind: ClassVar[str] = "lora"
    TITLE: ClassVar[str] = "a LoRA"
    PARTS: ClassVar[Mapping[str, str]] = PARTS
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = dict.fromkeys(PARTS, (2, 4))

    def __post_init__(self) -> None:
        """Refuse factors that cannot be multiplied."""
        super().__post_init__()
        up, down, mid = self.up, self.down, self.mid
        if up.shape[2:].numel() != 1:
            raise AdapterError(f"{self.said('up')}: expected [out, rank] or 1x1")
        inner = tuple(mid.shape[:2]) if mid is not None else (down.shape[0], down.shape[0])
        if (up.shape[1], down.shape[0]) != inner:
            raise AdapterError(f"ranks do not agree: {self.said()}")
        if mid is not None and down.shape[2:].numel() != 1:
            raise AdapterError(f"{self.said('down')}: expected 1x1 beside a lora_mid")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def low_rank(self, base_shape: Sequence[int]) -> LowRank:
        self.check_fit(base_shape)
        up, down = self._factors(working_dtype(self.up, self.down))
        return LowRank(up, as_matrix(pad_inputs(down, base_shape[1])), self.scale)

    def plain(self, dtype: torch.dtype) -> "LoRA":
        up, down = self._factors(dtype)
        if self.mid is None and up is self.up and down is self.down:
            return self
        return LoRA(up, down, fixed_scale=self.scale)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """up [out, r] and down [r, in(, kh, kw)], with the core multiplied into it."""
        up, down = as_matrix(self.up).to(dtype), self.down.to(dtype)
        if self.mid is not None:
            with full_precision(down.device):
                down = torch.einsum("mn...,nj->mj...", self.mid.to(dtype), as_matrix(down))
        return up, down

    def rows(self, start: int, stop: int) -> "LoRA":
        return replace(self, up=self.up[start:stop])

    def first_ranks(self, count: int) -> "LoRA":
        """Cut to the first ranks, the scale staying alpha over the full rank (as A1111 has it)."""
        if count < 1:
            raise AdapterError(f"cannot keep the first {count} ranks of a LoRA: at least 1")
        if count >= self.rank:
            return self
        mid = None if self.mid is None else self.mid[:count, :count]
        return LoRA(self.up[:, :count], self.down[:count], mid, self.scale * count)

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int,
        alpha: float | None = None,
        *,
        tucker: bool = False,
        generator: torch.Generator | None = None,
    ) -> "LoRA":
        """A new one for a weight of this shape, which changes nothing yet: up is zero.

        The rest is drawn as torch draws a fresh layer. With `tucker` a k x k convolution gets a
        lora_mid. Raises AdapterError for a rank below 1.
        """
        out, inputs, *kernel = shape
        positive("rank", rank)
        ones = [1] * len(kernel)
        core = tucker and math.prod(kernel) > 1
        down = drawn([rank, inputs, *(ones if core else kernel)], generator)
        mid = drawn([rank, rank, *kernel], generator) if core else None
        return cls(torch.zeros([out, rank, *ones]), down, mid, alpha)


def drawn(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """As torch draws the weight of a fresh layer: Kaiming uniform with a = sqrt 5."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)
