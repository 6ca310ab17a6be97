"""OFT on the inputs: blocks of a layer's input channels are rotated, W' = g * (W R^T).

PEFT's OFT and BOFT (github.com/huggingface/peft), where kohya's and LyCORIS' rotate the outputs. A
convolution's inputs are all in * kernel columns of [out, in * kernel]. What is kept is R - I of
each block, so that it means the same whatever options it was trained with (files.peft_parts).

Stages make a butterfly: R = R_m-1 ... R_1 R_0. Stage i takes the columns in groups of 2^i blocks of
size b, and in each group first the even and then the odd runs of b / 2 columns; each block turns
b columns in that order.

At multiplier m the change is m times that at 1, as for the other rotations.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import AdapterError, moved_towards
from extensions_lib.adapters.parts import OfParts


@dataclass(eq=False)
class InputRotation(OfParts):
    """turn: R - I, [n, b, b], or [m, n, b, b] for m stages, or [b, b] for one block over and over.

    rescale: g, [out], or None for 1.
    """

    turn: Tensor
    rescale: Tensor | None = None

    kind: ClassVar[str] = "oft"  # of stages: "boft"
    TITLE: ClassVar[str] = "an OFT of inputs"
    PARTS: ClassVar[Mapping[str, str]] = {"turn": "oft_in", "rescale": "rescale"}
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {"turn": (2, 3, 4), "rescale": (1, 2, 4)}

    def __post_init__(self) -> None:
        """Refuse anything but square blocks, and stages that make no butterfly."""
        super().__post_init__()
        if self.turn.shape[-1] != self.turn.shape[-2]:
            raise AdapterError(f"{self.said('turn')}: expected square blocks")
        if self.rescale is not None and max(self.rescale.shape) != self.rescale.numel():
            raise AdapterError(f"{self.said('rescale')}: expected one number per channel")
        if self.turn.dim() == 4:
            stages, number, size = self.turn.shape[:3]
            unit = 2 ** min(stages - 1, 62)
            if stages > 1 and (size % 2 or number % unit):
                raise AdapterError(
                    f"{self.said('turn')}: expected blocks of an even size, their number a multiple"
                    f" of {unit} for {stages} stages"
                )
            vars(self)["kind"] = "boft"

    @property
    def inputs(self) -> int:
        """Columns of the weight it was made for: the number of blocks times their size, or -1."""
        return -1 if self.turn.dim() == 2 else self.turn.shape[-3] * self.turn.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (-1 if self.rescale is None else self.rescale.numel(), self.inputs)

    @property
    def flat(self) -> bool:
        return self.inputs != -1

    def _made_for(self, found: tuple[int, ...]) -> bool:
        columns, outputs = math.prod(found[1:]), self.shape[0]
        if len(found) < 2 or outputs not in (-1, found[0]):
            return False
        return not columns % self.turn.shape[-1] if self.inputs == -1 else columns == self.inputs

    @property
    def needs_scratch(self) -> bool:
        return True

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        turned = base.view(len(base), -1)
        turn = self.turn.to(total.dtype)
        for stage, change in enumerate(turn if turn.dim() == 4 else turn[None]):
            turned = self._turned(turned, change, stage)
        turned = turned.view(base.shape)
        if self.rescale is not None:
            turned = turned * self.rescale.to(total.dtype).view(-1, *[1] * (base.dim() - 1))
        return moved_towards(total, base, turned, multiplier, out)

    def _turned(self, columns: Tensor, change: Tensor, stage: int) -> Tensor:
        """[out, in] with each run of b columns, in the order of the stage, times its R^T."""
        size = change.shape[-1]
        order = self._order(columns.shape[1], size, stage, columns.device) if stage else None
        sorted_ = columns if order is None else columns[:, torch.argsort(order)]
        blocks = sorted_.reshape(len(columns), -1, size)
        equation = "onk,ck->onc" if change.dim() == 2 else "onk,nck->onc"
        found = torch.add(blocks, torch.einsum(equation, blocks, change)).flatten(1)
        return found if order is None else found[:, order]

    @staticmethod
    def _order(columns: int, size: int, stage: int, device: torch.device) -> Tensor:
        """Where each column of a stage is to be taken from: even runs, then odd ones, by group."""
        runs = torch.arange(columns, device=device).view(-1, 2**stage, 2, size // 2)
        return runs.transpose(1, 2).flatten()

    def rows(self, start: int, stop: int) -> "InputRotation":
        if self.rescale is None:
            return self
        return replace(self, rescale=self.rescale.flatten()[start:stop])

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return "oft_in" in part_names
