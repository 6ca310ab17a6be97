"""BOFT: a product of butterfly stages of rotations, W' = rescale * R_m-1 ... R_1 R_0 W.

Liu et al. 2023 (arXiv 2311.06243); files as LyCORIS writes them. Stage i takes the rows of W in
groups of 2^i * b, pairs the halves of each group (row j of the first with row j of the second) and
turns each run of b rows in that order by a block of its own, R = (I + Q) (I - Q)^-1, Q = B - B^T,
all blocks together held to the norm alpha * out where alpha is above 0.

At multiplier m the end result is interpolated, W + m (W' - W), as A1111 does. LyCORIS turns every
stage by m, which is no multiple of the change and so could not be added to others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import AdapterError, moved_towards
from extensions_lib.adapters.oft import Rotation
from extensions_lib.adapters.parts import positive


@dataclass(eq=False)
class BOFT(Rotation):
    """blocks or stored rotations [m, n, b, b] for n * b output channels; any inputs and kernel."""

    plain_change: Tensor | None = None  # R - I, what the plain form is

    kind: ClassVar[str] = "boft"
    TITLE: ClassVar[str] = "a BOFT"
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "blocks": (4,), "stored": (4,), "rescale": (1, 2, 4),
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse blocks that make no butterfly."""
        super().__post_init__()
        stages, number, size, _ = self._blocks.shape
        if size % 2 or number % 2 ** min(stages - 1, 62):
            raise AdapterError(
                f"{self.said()}: expected blocks of an even size, their number a multiple of"
                f" {2 ** min(stages - 1, 62)} for {stages} stages"
            )

    @property
    def needs_scratch(self) -> bool:
        return True

    @property
    def row_unit(self) -> None:
        return None

    def plain(self, dtype: torch.dtype) -> "BOFT":
        if self.plain_change is not None and self.plain_change.dtype == dtype:
            return self
        gains = None if self.rescale is None else self.rescale.to(dtype)
        return BOFT(stored=self._blocks, rescale=gains, plain_change=self.change(dtype))

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        plain = self.plain(total.dtype)
        assert plain.plain_change is not None
        _, number, size, _ = plain.plain_change.shape
        turned, order = base.view(len(base), -1), torch.arange(len(base), device=base.device)
        for stage, change in enumerate(plain.plain_change):
            # One gather leads from the order of the last stage to that of this one.
            wanted = self._order(stage, base.device)
            run = turned[_inverse(order)[wanted]].view(number, size, -1)
            turned, order = torch.baddbmm(run, change, run).flatten(0, 1), wanted
        turned = turned[_inverse(order)].view(base.shape)
        if plain.rescale is not None:
            turned = turned * plain.rescale.reshape(-1, *[1] * (base.dim() - 1))
        return moved_towards(total, base, turned, multiplier, out)

    def _order(self, stage: int, device: torch.device) -> Tensor:
        """The rows of the weight in the order in which a stage turns them."""
        rows = torch.arange(self.outputs, device=device)
        half = 2**stage * self._blocks.shape[-1] // 2
        return rows.view(-1, 2, half).transpose(1, 2).flatten()

    def parameters(self) -> dict[str, Tensor]:
        held = {"blocks": self.blocks, "stored": self.stored, "rescale": self.rescale}
        return {self.PARTS[name]: part for name, part in held.items() if part is not None}

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int,
        alpha: float | None = None,
        *,
        rescale: bool = False,
        generator: torch.Generator | None = None,
    ) -> "BOFT":
        """A new one for a weight of this shape, which changes nothing yet; nothing is drawn.

        rank: the largest size of a block; the nearest even size below is taken of which the outputs
        hold a power of two. alpha: the constraint. Raises AdapterError where there is none.
        """
        out = shape[0]
        sizes = [
            size
            for size in range(2, min(positive("rank", rank), out) + 1, 2)
            if out % size == 0 and (out // size).bit_count() == 1
        ]
        if not sizes:
            raise AdapterError(f"{out} output channels have no butterfly of blocks up to {rank}")
        number = out // sizes[-1]
        blocks = torch.zeros(number.bit_length(), number, sizes[-1], sizes[-1])
        return cls(
            blocks, None, torch.ones(out, *[1] * (len(shape) - 1)) if rescale else None, alpha
        )


def _inverse(order: Tensor) -> Tensor:
    return torch.argsort(order)
