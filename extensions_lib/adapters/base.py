"""What an adapter is: a function from a base weight to a change of it.

A weight is [out, in] (linear) or [out, in, kh, kw] (convolution). Each algorithm is one module with
one subclass of Adapter, made of pure tensor functions that autograd can go through; applying,
training, extraction and inspection all use that one piece.
"""

import abc
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AdapterError(ValueError):
    """Tensors that make no adapter, or an adapter that does not fit a weight."""


class LowRank(NamedTuple):
    """delta = scale * (up @ down).view(base shape); up [out, r], down [r, in*k], fp32 or fp64."""

    up: Tensor
    down: Tensor
    scale: float


class Adapter(abc.ABC):
    """The change that one network makes to one layer; holds its tensors and its scale."""

    kind: ClassVar[str]

    @property
    def rank(self) -> int | None:
        """Number of ranks, None for an algorithm that has none."""
        return None

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it was made for, up to trailing ones: [out, in] or [out, in, *k]."""

    def low_rank(self, base_shape: Sequence[int]) -> "LowRank | None":
        """The change as factors; None for a change that is not low-rank.

        Raises AdapterError where it does not fit.
        """
        return None

    def delta(self, base: Tensor) -> Tensor:
        """The change of `base` at multiplier 1, in fp32 (fp64 for doubles), of the shape of base.

        Raises AdapterError where the adapter does not fit `base`.
        """
        factors = self.low_rank(base.shape)
        if factors is None:
            raise NotImplementedError(f"{type(self).__name__} is not low-rank and has no delta()")
        with full_precision(base.device):
            return (factors.scale * (factors.up @ factors.down)).reshape(base.shape)

    def first_ranks(self, count: int) -> "Adapter":
        """The adapter cut to its first `count` ranks (DyLoRA); itself where there are no ranks."""
        return self

    def misfit(self, base_shape: Sequence[int]) -> str | None:
        """Why it does not fit a weight of this shape, None if it does.

        Trailing ones are alike: a linear adapter fits a 1x1 convolution and the other way round.
        """
        shape = self.shape
        if shape == tuple(base_shape):
            return None
        made, found = _trimmed(shape), _trimmed(base_shape)
        if made == found or (
            # Inpainting: 4 latent channels, then mask and masked latents, which it leaves alone.
            found[1:2] == (9,) and made == (found[0], 4, *found[2:])
        ):
            return None
        return f"expected {list(base_shape)}, found {list(shape)}"

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by canonical part name, as `from_tensors` takes them."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> "Adapter":
        """The same adapter with its tensors on `device`; itself if they are there."""

    @classmethod
    @abc.abstractmethod
    def from_tensors(cls, parts: Mapping[str, Tensor]) -> "Adapter":
        """Build from the parts of one layer. Raises AdapterError naming the part that is wrong."""

    @classmethod
    @abc.abstractmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        """Whether a layer with these parts is of this kind."""


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """fp32, or fp64 where one of the tensors is: what a change is computed in."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off: a host may call from inside it, and would round the factors to half."""
    if device.type in ("cpu", "cuda"):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def pad_inputs(change: Tensor, inputs: int) -> Tensor:
    """[out, in, *k] -> [out, inputs, *k], with zeros for the input channels it does not know."""
    missing = inputs - change.shape[1]
    return F.pad(change, (0, 0) * (change.dim() - 2) + (0, missing)) if missing else change


def _trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)
