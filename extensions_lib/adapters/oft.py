"""OFT: blocks of output channels are rotated, W'_k = R_k^T W_k with R = (I + Q) (I - Q)^-1.

Qiu et al. 2023 (arXiv 2306.07280); kohya's OFT and LyCORIS' Diag-OFT, whose files and formula are
alike: Q = B - B^T of the stored blocks, all of them together held to the norm alpha * out where
alpha is above 0 (kohya; LyCORIS calls alpha the constraint and has 0 for none), and perhaps a
`rescale` of the output channels. `oft_diag` of LyCORIS before 2.1 stores R itself, its rescale
multiplied in. With four dimensions either is a butterfly (see boft).

At multiplier m the change is m times that at 1: R_m = I + m (R - I), as kohya and LyCORIS have it
for the rotation. Where LyCORIS' forward leaves the rescale at full strength whatever m, it is
interpolated here too, so that 0 is no change.

A1111 multiplies linear weights from the side of the inputs; followed is kohya, which trains them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError, full_precision
from extensions_lib.adapters.lokr import factors_of
from extensions_lib.adapters.parts import OfParts, positive


@dataclass(eq=False)
class Rotation(OfParts):
    """What OFT and BOFT share: stored `blocks` or `stored` rotations, rescale [out, 1..], alpha."""

    blocks: Tensor | None = None
    stored: Tensor | None = None
    rescale: Tensor | None = None
    alpha: float | None = None

    PARTS: ClassVar[Mapping[str, str]] = {
        "blocks": "oft_blocks", "stored": "oft_diag", "rescale": "rescale",
    }  # fmt: skip
    BLOCK_DIMS: ClassVar[int] = 3

    def __post_init__(self) -> None:
        """Refuse anything but square blocks of one sort, and a rescale of another size."""
        super().__post_init__()
        if (self.blocks is None) == (self.stored is None):
            raise AdapterError(f"{self.TITLE} needs oft_blocks or oft_diag, and not both")
        if self._blocks.shape[-1] != self._blocks.shape[-2]:
            raise AdapterError(f"{self.said()}: expected square blocks")
        if self.rescale is not None and not (
            self.rescale.shape[0] == self.rescale.numel() == self.outputs
        ):
            raise AdapterError(f"{self.said()}: expected a rescale of {self.outputs} channels")

    @property
    def _blocks(self) -> Tensor:
        found = self.stored if self.blocks is None else self.blocks
        assert found is not None
        return found

    @property
    def outputs(self) -> int:
        """Output channels: the number of blocks times their size."""
        return self._blocks.shape[-3] * self._blocks.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs, -1)

    def change(self, dtype: torch.dtype) -> Tensor:
        """R - I of each block, as 2 Q (I - Q)^-1: that keeps the digits of small turns."""
        with full_precision(self._blocks.device):
            found = self._blocks.to(dtype)
            one = torch.eye(found.shape[-1], dtype=dtype, device=found.device)
            if self.blocks is None:
                return found - one
            turn = found - found.mT
            if self.alpha is not None and self.alpha > 0:
                norm = torch.linalg.vector_norm(turn).clamp_min(1e-8)
                turn = turn * (self.alpha * self.outputs / norm).clamp_max(1)
            # Q is skew, so that I - Q is never singular; only NaN could be refused here.
            change: Tensor = torch.linalg.solve_ex(one - turn, 2 * turn)[0]
            return change


@dataclass(eq=False)
class OFT(Rotation):
    """blocks or stored rotations [n, b, b] for n * b output channels; any inputs and kernel."""

    plain_change: Tensor | None = None  # rescale * R^T - I, what the plain form is

    kind: ClassVar[str] = "oft"
    TITLE: ClassVar[str] = "an OFT"
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "blocks": (3,), "stored": (3,), "rescale": (1, 2, 4),
    }  # fmt: skip

    @property
    def row_unit(self) -> int:
        return self._blocks.shape[-1]

    def plain(self, dtype: torch.dtype) -> "OFT":
        if self.plain_change is not None and self.plain_change.dtype == dtype:
            return self
        change = self.change(dtype).mT
        if self.rescale is not None:
            gain = self.rescale.to(dtype).reshape(*change.shape[:2], 1)
            one = torch.eye(change.shape[-1], dtype=dtype, device=change.device)
            change = gain * change + (gain - 1) * one
        return OFT(stored=self._blocks, plain_change=change)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        change = self.plain(total.dtype).plain_change
        assert change is not None
        cube = (len(change), change.shape[1], -1)
        into = None if out is None else out.view(cube)
        sides = change, base.view(cube)
        return torch.baddbmm(total.view(cube), *sides, alpha=multiplier, out=into).view(base.shape)

    def rows(self, start: int, stop: int) -> "OFT":
        assert self.plain_change is not None
        part = slice(start // self.row_unit, stop // self.row_unit)
        return OFT(stored=self._blocks[part], plain_change=self.plain_change[part])

    def parameters(self) -> dict[str, Tensor]:
        held = {"blocks": self.blocks, "stored": self.stored, "rescale": self.rescale}
        return {self.PARTS[name]: part for name, part in held.items() if part is not None}

    @classmethod
    def from_tensors(cls, parts: Mapping[str, Tensor]) -> Adapter:
        """An OFT, or a BOFT where the blocks have stages."""
        from extensions_lib.adapters.boft import BOFT

        blocks = parts.get("oft_blocks", parts.get("oft_diag"))
        staged = blocks is not None and blocks.dim() == 4
        return BOFT._read(parts) if staged else cls._read(parts)

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return "oft_blocks" in part_names or "oft_diag" in part_names

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int,
        alpha: float | None = None,
        *,
        rank_is_size: bool = False,
        rescale: bool = False,
        generator: torch.Generator | None = None,
    ) -> "OFT":
        """A new one for a weight of this shape, which changes nothing yet; nothing is drawn.

        rank: the number of blocks (kohya), which must divide the outputs; with `rank_is_size` the
        size of a block, or the nearest below that divides (Diag-OFT). alpha: the constraint.
        Raises AdapterError.
        """
        positive("rank", rank)
        size = factors_of(shape[0], rank)[0] if rank_is_size else shape[0] // rank
        if not rank_is_size and shape[0] % rank:
            raise AdapterError(f"{rank} blocks do not divide {shape[0]} output channels")
        gains = torch.ones(shape[0], *[1] * (len(shape) - 1)) if rescale else None
        return cls(torch.zeros(shape[0] // size, size, size), None, gains, alpha)
