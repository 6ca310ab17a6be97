"""LoKr: the Kronecker product of a small and a larger matrix, delta = alpha/r * kron(w1, w2).

Yeh et al. 2023, LyCORIS (arXiv 2309.14859), after Edalati et al. 2022, KronA (arXiv 2212.10650).
Each of w1 and w2 is whole or a product a @ b; w2 of a convolution carries the kernel, as
[b, d, kh, kw], as columns of w2_b, or in a Tucker core t2 (then w2_a is [r, b], transposed).

The rank is that of w2_b, else w1_b. With both whole there is none and the scale is 1 whatever
alpha says, as LyCORIS trains them (peft divides by its rank there). alpha/r counts once, as in
LyCORIS' forward; its merge helpers apply it twice.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import AdapterError, full_precision
from extensions_lib.adapters.lora import drawn
from extensions_lib.adapters.parts import OfParts, as_matrix, positive


@dataclass(eq=False)
class LoKr(OfParts):
    """w1 [a, c] or w1_a [a, r], w1_b [r, c]; w2 [b, d, *k] or w2_a [b, r], w2_b [r, d * k], for a
    weight [a * b, c * d, *k]; Tucker: w2_a [r, b], w2_b [r, d], t2 [r, r, *k].
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None
    fixed_scale: float | None = None

    kind: ClassVar[str] = "lokr"
    TITLE: ClassVar[str] = "a LoKr"
    PARTS: ClassVar[Mapping[str, str]] = {
        name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    }
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {
        **dict.fromkeys(PARTS, (2,)), "w2": (2, 4), "w2_b": (2, 4), "t2": (4,)
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse what gives no w1 or w2, or more than one."""
        super().__post_init__()
        for which, core in (("w1", None), ("w2", self.t2)):
            whole, a, b = (getattr(self, which + end) for end in ("", "_a", "_b"))
            if (whole is None) == (a is None) or (a is None) != (b is None):
                pair = f"lokr_{which}_a with lokr_{which}_b"
                raise AdapterError(f"a LoKr needs lokr_{which}, or {pair}: {self.said()}")
            if core is not None and (a is None or b.dim() != 2):
                raise AdapterError(f"lokr_t2 belongs to a pair of matrices: {self.said()}")
            if a is not None:
                ranks = (a.shape[1] if core is None else a.shape[0], b.shape[0])
                if ranks != ((ranks[0],) * 2 if core is None else tuple(core.shape[:2])):
                    raise AdapterError(f"ranks do not agree: {self.said()}")

    @property
    def rank(self) -> int | None:
        inner = self.w1_b if self.w2_b is None else self.w2_b
        return None if inner is None else inner.shape[0]

    @property
    def _first(self) -> tuple[int, int]:
        """Rows and columns of w1."""
        rows = self.w1_a if self.w1 is None else self.w1
        columns = self.w1_b if self.w1 is None else self.w1
        assert rows is not None and columns is not None
        return rows.shape[0], columns.shape[1]

    @property
    def _second(self) -> tuple[int, ...]:
        """Shape of w2, the kernel being among its columns where `flat`."""
        if self.w2 is not None:
            return tuple(self.w2.shape)
        assert self.w2_a is not None and self.w2_b is not None
        if self.t2 is not None:
            return (self.w2_a.shape[1], self.w2_b.shape[1], *self.t2.shape[2:])
        return (self.w2_a.shape[0], *self.w2_b.shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        first, second = self._first, self._second
        return (first[0] * second[0], first[1] * second[1], *second[2:])

    @property
    def flat(self) -> bool:
        return len(self._second) == 2

    def plain(self, dtype: torch.dtype) -> "LoKr":
        each = self.cast(dtype)
        if each.w1 is not None and each.w2 is not None and each.flat:
            return each
        w1, w2 = each.w1, each.w2
        with full_precision(next(iter(self._held().values())).device):
            if w1 is None:
                assert each.w1_a is not None and each.w1_b is not None
                w1 = each.w1_a @ each.w1_b
            if w2 is None:
                assert each.w2_a is not None and each.w2_b is not None
                w2_b = as_matrix(each.w2_b)
                if each.t2 is None:
                    w2 = each.w2_a @ w2_b
                else:
                    w2 = torch.einsum("ij...,ip,jq->pq...", each.t2, each.w2_a, w2_b)
        return LoKr(w1, w2=as_matrix(w2), fixed_scale=self.scale)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        plain = self.plain(total.dtype)
        assert plain.w1 is not None and plain.w2 is not None
        grid = (plain.w1.shape[0], plain.w2.shape[0], plain.w1.shape[1], -1)  # a, b, c, d * k
        result = torch.addcmul(
            total.view(grid),
            plain.w1[:, None, :, None],
            plain.w2[None, :, None, :],
            value=self.scale * multiplier,
            out=None if out is None else out.view(grid),
        )
        return result.view(base.shape)

    @property
    def row_unit(self) -> int:
        return self._second[0]

    def rows(self, start: int, stop: int) -> "LoKr":
        assert self.w1 is not None
        part = self.w1[start // self.row_unit : stop // self.row_unit]
        return LoKr(part, w2=self.w2, fixed_scale=self.scale)

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return any(name.startswith("lokr_") for name in part_names)

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int,
        alpha: float | None = None,
        *,
        factor: int = -1,
        decompose_both: bool = False,
        full_matrix: bool = False,
        tucker: bool = False,
        generator: torch.Generator | None = None,
    ) -> "LoKr":
        """A new one for a weight of this shape, which changes nothing yet: w2 is zero.

        Both sizes are split in two near `factor` (-1: near the root). w2 is a pair of `rank` where
        that is less than half its larger side and not `full_matrix`; with `decompose_both` so is
        w1. As LyCORIS has it. Raises AdapterError for a rank below 1.
        """
        positive("rank", rank)
        (a, b), (c, d) = factors_of(shape[0], factor), factors_of(shape[1], factor)
        kernel = tuple(shape[2:])
        found: dict[str, Any] = {}
        if decompose_both and not full_matrix and rank < max(a, c) / 2:
            found["w1_a"], found["w1_b"] = drawn([a, rank], generator), drawn([rank, c], generator)
        else:
            found["w1"] = drawn([a, c], generator)
        if full_matrix or rank >= max(b, d) / 2:
            found["w2"] = torch.zeros(b, d, *kernel)
        elif tucker and math.prod(kernel) > 1:
            found["t2"] = drawn([rank, rank, *kernel], generator)
            found["w2_a"], found["w2_b"] = drawn([rank, b], generator), torch.zeros(rank, d)
        else:
            found["w2_a"] = drawn([b, rank], generator)
            found["w2_b"] = torch.zeros(rank, d * math.prod(kernel))
        return cls(**found, alpha=alpha)


def factors_of(size: int, factor: int = -1) -> tuple[int, int]:
    """(m, n), m * n = size and m <= n: `factor` itself where it divides, else the nearest below.

    -1: as near the root as it goes.
    """
    if factor != -1:
        positive("factor", factor)
    if factor > 0 and size % factor == 0:
        m = factor
    else:
        limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
        m = max(each for each in range(1, limit + 1) if size % each == 0)
    return min(m, size // m), max(m, size // m)
