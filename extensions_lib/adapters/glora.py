"""GLoRA: a low-rank change and one of the weight itself, delta = alpha/r * (B + W A).

Chavan et al. 2023 (arXiv 2306.07967), without its vectors; files as LyCORIS writes them. Since
LyCORIS 3.0 A = a1 @ a2 and B = b1 @ b2; before, the names were the other way round: A = a2 @ a1,
B = b2 @ b1. The shapes tell. `bm` is a Tucker core of B.

alpha/r counts once on both terms, as in every merge; LyCORIS' forward before 3.0 squared it, which
shows only where alpha is not the rank, and A1111 leaves it out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError, as_rows, full_precision
from extensions_lib.adapters.lora import drawn
from extensions_lib.adapters.parts import OfParts, as_matrix, positive, said
from extensions_lib.adapters.products import plus_product, product


@dataclass(eq=False)
class GLoRA(OfParts):
    """a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in, *k], all perhaps with trailing ones;
    bm [r, r, *k] beside a 1x1 b2. `swapped`: the tensors are named as before LyCORIS 3.0.
    """

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    bm: Tensor | None = None
    alpha: float | None = None
    fixed_scale: float | None = None
    swapped: bool = False

    kind: ClassVar[str] = "glora"
    TITLE: ClassVar[str] = "a GLoRA"
    PARTS: ClassVar[Mapping[str, str]] = {
        name: f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm")
    }
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {**dict.fromkeys(PARTS, (2, 4)), "bm": (4,)}

    def __post_init__(self) -> None:
        """Refuse factors that cannot be multiplied."""
        super().__post_init__()
        ranks = [self.a1.shape[1], self.a2.shape[0], self.b1.shape[1], self.b2.shape[0]]
        if self.bm is not None:
            ranks += self.bm.shape[:2]
        if len(set(ranks)) > 1:
            raise AdapterError(f"ranks do not agree: {self.said()}")
        if not self.a1.shape[0] == self.a2.shape[1] == self.b2.shape[1]:
            raise AdapterError(f"input sizes do not agree: {self.said()}")
        small = [self.a1, self.a2, self.b1, *([] if self.bm is None else [self.b2])]
        if any(part.shape[2:].numel() != 1 for part in small):
            raise AdapterError(f"expected 1x1 of all but the last factor of b: {self.said()}")

    @property
    def rank(self) -> int:
        return self.a2.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = (self.b2 if self.bm is None else self.bm).shape[2:]
        return (self.b1.shape[0], self.b2.shape[1], *kernel)

    def plain(self, dtype: torch.dtype) -> "GLoRA":
        each = self.cast(dtype)
        a1, a2, b1 = as_matrix(each.a1), as_matrix(each.a2), as_matrix(each.b1)
        b2 = each.b2
        if each.bm is not None:
            with full_precision(b2.device):
                b2 = torch.einsum("mn...,nj->mj...", each.bm, as_matrix(b2))
        return GLoRA(a1, a2, b1, b2, fixed_scale=self.scale)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        plain, alpha = self.plain(total.dtype), self.scale * multiplier
        b1, b2 = plain.b1, as_matrix(plain.b2)
        if base.shape[2:].numel() == 1:  # one product of rank 2r
            up = torch.cat([b1, product(as_rows(base), plain.a1)], 1)
            down = torch.cat([b2, plain.a2])
            result = plus_product(as_rows(total), up, down, alpha, as_rows(out))
            return result.view(base.shape)
        whole = plus_product(as_rows(total), b1, b2, alpha, as_rows(out))
        through = plain.a1.t() @ base.flatten(2)  # [out, r, k]
        wide = plain.a2.t().expand(len(base), -1, -1)
        cube = (len(base), base.shape[1], -1)
        into = None if out is None else out.view(cube)
        return torch.baddbmm(whole.view(cube), wide, through, alpha=alpha, out=into).view(
            base.shape
        )

    def rows(self, start: int, stop: int) -> "GLoRA":
        return replace(self, b1=self.b1[start:stop])

    def parameters(self) -> dict[str, Tensor]:
        """By the names they had in the file."""
        found = super().parameters()
        if self.swapped:
            for first, second in (("a1", "a2"), ("b1", "b2")):
                one, two = f"{first}.weight", f"{second}.weight"
                found[one], found[two] = found[two], found[one]
        return found

    @classmethod
    def from_tensors(cls, parts: Mapping[str, Tensor]) -> Adapter:
        """Either layout: the one whose sizes agree; of two, the one of the smaller rank."""
        other = dict(parts)
        for first, second in (("a1.weight", "a2.weight"), ("b1.weight", "b2.weight")):
            if first not in parts or second not in parts:
                raise AdapterError(f"a GLoRA needs {first} and {second}")
            other[first], other[second] = parts[second], parts[first]
        found: list[GLoRA] = []
        problems = []
        for layout, swapped in ((parts, False), (other, True)):
            try:
                found.append(replace(cls._read(layout), swapped=swapped))
            except AdapterError as error:
                problems.append(str(error))
        if not found:
            shapes = ", ".join(f"{name} {said(part)}" for name, part in sorted(parts.items()))
            raise AdapterError(f"{problems[0]}; the sizes fit neither layout of GLoRA: {shapes}")
        return min(found, key=lambda each: each.rank)

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int,
        alpha: float | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> "GLoRA":
        """A new one for a weight of this shape, which changes nothing yet: a2 and b2 are zero.

        Raises AdapterError for a rank below 1.
        """
        out, inputs, *kernel = shape
        positive("rank", rank)
        ones = [1] * len(kernel)
        a1, b1 = drawn([inputs, rank, *ones], generator), drawn([out, rank, *ones], generator)
        a2, b2 = torch.zeros(rank, inputs, *ones), torch.zeros(rank, inputs, *kernel)
        return cls(a1, a2, b1, b2, alpha=alpha)
