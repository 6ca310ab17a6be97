"""What an adapter is: a function from a base weight to a change of it.

A weight is [out, in] (linear) or [out, in, kh, kw] (convolution). Each algorithm is one module with
one subclass of Adapter, made of pure tensor functions that autograd can go through; applying,
training, extraction and inspection all use that one piece.
"""

import abc
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from extensions_lib.adapters.products import autocasts, plus_product


class AdapterError(ValueError):
    """Tensors that make no adapter, or an adapter that does not fit a weight."""


class LowRank(NamedTuple):
    """delta = scale * (up @ down).view(base shape); up [out, r], down [r, in*k], fp32 or fp64."""

    up: Tensor
    down: Tensor
    scale: float


class Adapter(abc.ABC):
    """The change that one network makes to one layer; holds its tensors and its scale.

    The change at multiplier m is m times the change at 1, for every kind. A kind says what it does
    in one place: `low_rank` for a product of thin factors, `_add` for anything else.
    """

    kind: ClassVar[str]

    @property
    def rank(self) -> int | None:
        """Number of ranks, None for an algorithm that has none."""
        return None

    @property
    def scale(self) -> float:
        """What its tensors' product is multiplied by."""
        return 1.0

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it was made for, up to trailing ones: [out, in] or [out, in, *k].

        -1 is a size that its tensors do not tell; at the end, it stands for all further sizes.
        """

    @property
    def flat(self) -> bool:
        """Whether `shape` is [out, in * kernel], the kernel's own size not being told."""
        return False

    @property
    def changes_weight(self) -> bool:
        """False where it has something for the bias alone; its delta is then zero."""
        return True

    @property
    def changes_bias(self) -> bool:
        """Whether `bias_delta` is a tensor."""
        return False

    def bias_delta(self, base_bias: Tensor | None) -> Tensor | None:
        """The change of the layer's bias [out] at multiplier 1 in fp32 (fp64 for doubles), or None.

        For a layer without bias (None) it is what its bias would become. Raises AdapterError where
        it does not fit.
        """
        return None

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
        with full_precision(base.device):
            if factors is not None:
                return (factors.scale * (factors.up @ factors.down)).reshape(base.shape)
            self.check_fit(base.shape)
            clean = base.to(working_dtype(base, *self.parameters().values())).contiguous()
            return self.added(torch.zeros_like(clean), clean)

    def added(
        self, total: Tensor, base: Tensor, multiplier: float = 1.0, *, out: Tensor | None = None
    ) -> Tensor:
        """`total` plus multiplier times the change of `base`.

        total and base: contiguous, of one shape that fits and one dtype, fp32 or fp64; they may be
        one tensor. Without `out` the result is new and differentiable; with it (contiguous too, not
        overlapping base; it may be total itself) it is written there, which records no gradients.
        """
        inputs = self.inputs_of(base.shape)
        if inputs == base.shape[1:2].numel():
            return self._add(total, base, multiplier, out)
        known, clean = total[:, :inputs].contiguous(), base[:, :inputs].contiguous()
        whole = torch.cat([self._add(known, clean, multiplier, None), total[:, inputs:]], 1)
        return whole if out is None else out.copy_(whole)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        """`added` for a base that has just the input channels it was made for."""
        factors = self.low_rank(base.shape)
        if factors is None:
            raise NotImplementedError(f"{type(self).__name__} has neither low_rank() nor _add()")
        up, down = factors.up.to(total.dtype), factors.down.to(total.dtype)
        alpha = factors.scale * multiplier
        return plus_product(as_rows(total), up, down, alpha, as_rows(out)).view(base.shape)

    def plain(self, dtype: torch.dtype) -> "Adapter":
        """One with the same change and no more of its own left to work out, in `dtype`.

        Merging makes it once and then goes over the weight piece by piece: Tucker cores are
        multiplied out, rotations solved.
        """
        return self

    @property
    def row_unit(self) -> int | None:
        """Rows of the weight that its plain form needs together; None: all of them."""
        return None

    @property
    def needs_scratch(self) -> bool:
        """Whether adding its plain form takes memory of the size of the weight besides the result.

        It is then added in pieces, so that this memory stays small and in a cache.
        """
        return False

    def rows(self, start: int, stop: int) -> "Adapter":
        """The plain form for these rows of the weight alone, in whole `row_unit`s."""
        raise NotImplementedError(f"{type(self).__name__} cannot be cut by rows")

    def first_ranks(self, count: int) -> "Adapter":
        """The adapter cut to its first `count` ranks (DyLoRA); itself where there are no ranks."""
        return self

    def misfit(self, base_shape: Sequence[int]) -> str | None:
        """Why it does not fit a weight of this shape, None if it does.

        Trailing ones are alike: a linear adapter fits a 1x1 convolution and the other way round.
        """
        if self.shape == tuple(base_shape):
            return None
        # Inpainting: 4 latent channels, then mask and masked latents, which it leaves alone.
        fewer = (*base_shape[:1], 4, *base_shape[2:])
        inpainting = tuple(base_shape[1:2]) == (9,) and self._made_for(fewer)
        if inpainting or self._made_for(tuple(base_shape)):
            return None
        made = ", ".join("any" if size == -1 else str(size) for size in self.shape)
        return f"expected {list(base_shape)}, found [{made}]"

    def check_fit(self, base_shape: Sequence[int]) -> None:
        """Raises AdapterError with the words of `misfit`."""
        if problem := self.misfit(base_shape):
            raise AdapterError(problem)

    def _made_for(self, found: tuple[int, ...]) -> bool:
        made = self.shape
        if self.flat:
            return made == (*found[:1], math.prod(found[1:]))
        if made[-1] != -1:
            return _trimmed(made) == _trimmed(found)
        told = made[:-1]
        return len(found) >= len(told) and all(
            size in (-1, here) for size, here in zip(told, found, strict=False)
        )

    def inputs_of(self, base_shape: Sequence[int]) -> int:
        """How many of the weight's input channels, from the first on, it was made for."""
        if len(base_shape) < 2:
            return 1
        told = self.shape[1] if len(self.shape) > 1 else -1
        if told == -1:
            return base_shape[1]
        return told // math.prod(base_shape[2:]) if self.flat else told

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by canonical part name, as `from_tensors` takes them."""

    def parameters(self) -> dict[str, Tensor]:
        """Those that are trained, by canonical part name; the very tensors it computes with."""
        return {
            name: tensor
            for name, tensor in self.tensors().items()
            if tensor.is_floating_point() and name not in ("alpha", "scale")
        }

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


@overload
def as_rows(weight: Tensor) -> Tensor: ...
@overload
def as_rows(weight: None) -> None: ...
def as_rows(weight: Tensor | None) -> Tensor | None:
    """[out, ...] -> [out, rest], a view of a contiguous weight; None stays None."""
    return None if weight is None else weight.view(len(weight), -1)


def moved_towards(
    total: Tensor, base: Tensor, goal: Tensor, multiplier: float, out: Tensor | None
) -> Tensor:
    """total + multiplier * (goal - base), in one pass where total is base."""
    if total is base:
        return torch.lerp(base, goal, multiplier, out=out)
    return torch.add(total, goal - base, alpha=multiplier, out=out)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """fp32, or fp64 where one of the tensors is: what a change is computed in."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off: a host may call from inside it, and would round the factors to half."""
    if device.type in ("cpu", "cuda") and autocasts(device.type):
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
