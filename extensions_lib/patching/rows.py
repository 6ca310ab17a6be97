"""Which picture each sample of a batch belongs to, and a network's weight for each of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from extensions_lib.errors import NetworkProblem

Multiplier = float | tuple[float, ...]
"""One weight for all samples, or one for each picture of the batch."""

_KEPT = 64


class Rows:
    """The pictures of the samples that the UNet is asked about next, said by the host.

    Also keeps the small tensors that layers make of them, since most layers need the same ones.
    """

    def __init__(self) -> None:
        self._pictures: tuple[int, ...] = ()
        self._made: dict[tuple[object, ...], Tensor] = {}

    def set(self, pictures: Sequence[int]) -> None:
        """`pictures[i]` is the picture of sample i, counted from 0."""
        self._pictures = tuple(pictures)

    def among(self, samples: int) -> tuple[int, ...]:
        """The picture of each of `samples` samples; a layer may have split each into several.

        Raises NetworkProblem where they are no multiple of what was said.
        """
        pictures = self._pictures
        if samples == len(pictures):
            return pictures
        times, rest = divmod(samples, max(1, len(pictures)))
        if rest or not pictures:
            raise NetworkProblem(
                f"the pictures of this batch have different networks, and a layer was asked about "
                f"{samples} samples where {len(pictures)} are known: make them one by one "
                "(batch size 1), or leave out the extension that changes the batch"
            )
        return tuple(picture for picture in pictures for _ in range(times))

    def vector(
        self, multipliers: Sequence[Multiplier], counts: Sequence[int], samples: int, like: Tensor
    ) -> Tensor:
        """Each multiplier as often as its count says: [1, total], or [samples, total].

        In the dtype and on the device of `like`. The second where one is not the same for all.
        """
        of_each = any(isinstance(each, tuple) for each in multipliers)
        pictures = self.among(samples) if of_each else (0,)
        key = (*multipliers, *counts, pictures, like.device, like.dtype)
        if key not in self._made:
            if len(self._made) >= _KEPT:
                self._made.clear()
            repeat = torch.tensor(counts)
            rows = [[weight_of(each, picture) for each in multipliers] for picture in pictures]
            with torch.inference_mode(False):
                made = torch.tensor(rows, dtype=torch.float64).repeat_interleave(repeat, 1)
                self._made[key] = made.to(like.dtype).to(like.device)
        return self._made[key]

    def indices(self, which: Sequence[int], device: torch.device) -> Tensor:
        """Numbers of samples as a tensor [n]."""
        key = ("indices", *which, device)
        if key not in self._made:
            if len(self._made) >= _KEPT:
                self._made.clear()
            with torch.inference_mode(False):
                self._made[key] = torch.tensor(which, device=device)
        return self._made[key]


def weight_of(multiplier: Multiplier, picture: int) -> float:
    """The weight for one picture."""
    return multiplier[picture] if isinstance(multiplier, tuple) else multiplier


def is_zero(multiplier: Multiplier) -> bool:
    """Whether it is 0 for every picture."""
    return not any(multiplier) if isinstance(multiplier, tuple) else multiplier == 0
