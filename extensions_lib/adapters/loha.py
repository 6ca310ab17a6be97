"""LoHa: the Hadamard product of two low-rank products, delta = alpha/r * (A1 @ B1) * (A2 @ B2).

Hyeon-Woo et al. 2021, FedPara (arXiv 2108.06098); files as LyCORIS writes them. The factors of a
convolution see it as [out, in * kh * kw]; the Tucker form keeps the kernel in two cores t1, t2 and
has the transpose of A: delta = alpha/r * prod_i einsum(ij.., jq, ip -> pq..)(t_i, b_i, a_i).

alpha/r counts once, as in LyCORIS' forward; its merge helpers apply it twice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import AdapterError, as_rows, full_precision
from extensions_lib.adapters.parts import OfParts, as_matrix, positive
from extensions_lib.adapters.products import product

PARTS = {
    "w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b",
    "t1": "hada_t1", "t2": "hada_t2",
}  # fmt: skip


@dataclass(eq=False)
class LoHa(OfParts):
    """w_a [out, r], w_b [r, in * k] or [r, in, *k]; Tucker: w_a [r, out], w_b [r, in], t [r, r, k].

    OneTrainer has w_a of a convolution as [out, r, 1, 1]. alpha None: scale 1; `fixed_scale`
    overrides alpha / r.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None
    fixed_scale: float | None = None

    kind: ClassVar[str] = "loha"
    TITLE: ClassVar[str] = "a LoHa"
    PARTS: ClassVar[Mapping[str, str]] = PARTS
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "w1_a": (2, 4), "w1_b": (2, 4), "w2_a": (2, 4), "w2_b": (2, 4), "t1": (4,), "t2": (4,),
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse factors that cannot be multiplied."""
        super().__post_init__()
        if (self.t1 is None) != (self.t2 is None):
            raise AdapterError(f"hada_t1 and hada_t2 go together: {self.said()}")
        for a, b, core in ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2)):
            if a.shape[2:].numel() != 1:
                raise AdapterError(f"expected hada_w1_a and hada_w2_a with 1x1: {self.said()}")
            ranks = (a.shape[1], b.shape[0]) if core is None else (a.shape[0], b.shape[0])
            if ranks != ((ranks[0],) * 2 if core is None else tuple(core.shape[:2])):
                raise AdapterError(f"ranks do not agree: {self.said()}")
        if self._shape_of("1") != self._shape_of("2"):
            raise AdapterError(f"the two products have different shapes: {self.said()}")

    def _shape_of(self, which: str) -> tuple[int, ...]:
        a, b, core = (getattr(self, name) for name in (f"w{which}_a", f"w{which}_b", f"t{which}"))
        if core is None:
            return (a.shape[0], *b.shape[1:])
        return (a.shape[1], b.shape[1:].numel(), *core.shape[2:])

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape_of("1")

    @property
    def flat(self) -> bool:
        return self.t1 is None and self.w1_b.dim() == 2

    def plain(self, dtype: torch.dtype) -> "LoHa":
        each = self.cast(dtype)
        if self.flat and self.w1_a.dim() == self.w2_a.dim() == 2:
            return each
        a1, b1 = _without_core(each.w1_a, each.w1_b, each.t1)
        a2, b2 = _without_core(each.w2_a, each.w2_b, each.t2)
        return LoHa(a1, b1, a2, b2, fixed_scale=self.scale)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        plain = self.plain(total.dtype)
        first, second = product(plain.w1_a, plain.w1_b), product(plain.w2_a, plain.w2_b)
        value = self.scale * multiplier
        result = torch.addcmul(as_rows(total), first, second, value=value, out=as_rows(out))
        return result.view(base.shape)

    @property
    def needs_scratch(self) -> bool:
        return True

    def rows(self, start: int, stop: int) -> "LoHa":
        return replace(self, w1_a=self.w1_a[start:stop], w2_a=self.w2_a[start:stop])

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int,
        alpha: float | None = None,
        *,
        tucker: bool = False,
        generator: torch.Generator | None = None,
    ) -> "LoHa":
        """A new one for a weight of this shape, which changes nothing yet: w2_a is zero.

        The rest is drawn as LyCORIS does: normal, of deviation 1 (w_b) and 0.1 (w1_a, cores). With
        `tucker` a k x k convolution gets cores. Raises AdapterError for a rank below 1.
        """
        out, inputs, *kernel = shape
        positive("rank", rank)

        def normal(deviation: float, *sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator) * deviation

        if tucker and math.prod(kernel) > 1:
            t1, t2 = (normal(0.1, rank, rank, *kernel) for _ in range(2))
            a, b1, b2 = normal(0.1, rank, out), normal(1, rank, inputs), normal(1, rank, inputs)
            return cls(a, b1, torch.zeros(rank, out), b2, t1, t2, alpha)
        columns = inputs * math.prod(kernel)
        a, b1, b2 = normal(0.1, out, rank), normal(1, rank, columns), normal(1, rank, columns)
        return cls(a, b1, torch.zeros(out, rank), b2, alpha=alpha)


def _without_core(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same product as [out, r] @ [r, in * k]."""
    a = as_matrix(a)
    if core is None:
        return a, as_matrix(b)
    with full_precision(b.device):
        wide = torch.einsum("ij...,jq->iq...", core, as_matrix(b))
    return a.t(), wide.flatten(1)
