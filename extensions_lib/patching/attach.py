"""One weight of the model, and the merged weight that stands in for it.

The base is never written to. A merged weight is a Parameter of its own: attaching puts that object
into the module, detaching puts the very same original object back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.adapters.base import Adapter
from extensions_lib.adapters.merge import Merge, merge_each

# First row and end of a part of a weight: all of it, or q, k or v of a fused attention weight.
Rows = tuple[int, int]


@dataclass
class Recipe:
    """What one parameter is to become: for each part of its rows, adapters and multipliers.

    `transposed`: the module holds the transpose of the weight that the adapters are made for.
    `signature` says the same by content keys: two recipes with equal signatures give equal bits.
    """

    module: nn.Module
    name: str
    transposed: bool = False
    stacks: dict[Rows, list[tuple[Adapter, float]]] = field(default_factory=dict)
    signature: list[tuple[object, ...]] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, str]:
        return id(self.module), self.name

    def add(self, rows: Rows, adapter: Adapter, multiplier: float, signed: tuple[Any, ...]) -> None:
        """One more adapter on a part of the rows."""
        self.stacks.setdefault(rows, []).append((adapter, multiplier))
        self.signature.append(signed)

    def to(self, device: torch.device, strength: float = 1.0) -> "Recipe":
        """The same with its adapters on a device, their multipliers times `strength`."""
        moved = Recipe(self.module, self.name, self.transposed)
        for rows, stack in self.stacks.items():
            moved.stacks[rows] = [(adapter.to(device), m * strength) for adapter, m in stack]
        return moved

    def original(self) -> tuple[nn.Parameter, bool]:
        """The parameter that is there, or zeros where the layer has no bias, which is then said."""
        found = self.module._parameters.get(self.name)
        if found is not None:
            return found, False
        rows = max(stop for _, stop in self.stacks)
        weight = next(p for p in self.module._parameters.values() if p is not None)
        return nn.Parameter(weight.new_zeros(rows), requires_grad=False), True


@dataclass
class Attached:
    """A parameter of a module with its merged stand-in in force."""

    module: nn.Module
    name: str
    original: nn.Parameter
    stand_in: nn.Parameter
    signature: list[tuple[object, ...]] = field(default_factory=list)
    base_version: int | None = None
    absent: bool = False  # the module itself has none: the original is zeros of our own
    aside: bool = False  # the original waits in host memory
    counted: int = 0  # bytes of the original that `Room` counts as staying

    @property
    def place(self) -> tuple[int, str]:
        """As its recipe has it."""
        return id(self.module), self.name

    @property
    def base(self) -> Tensor:
        """What is merged into: the original, or the finer copy that a host keeps beside it."""
        better = finer(self.module, self.name, self.original)
        if better is None and not self.aside:
            return self.original
        there = self.stand_in
        if better is not None:
            return better.to(there.device)
        return self.original.to(there, non_blocking=self.original.is_pinned())

    def put_in(self) -> None:
        self.module._parameters[self.name] = self.stand_in

    def put_back(self) -> None:
        self.module._parameters[self.name] = None if self.absent else self.original

    def follow(self) -> None:
        """Take the original to where the host has moved the model in the meantime."""
        here, there = self.original, self.stand_in
        if not self.aside and (here.device != there.device or here.dtype != there.dtype):
            self.original.data = here.data.to(there.device, there.dtype)

    def set_aside(self, copy: Callable[[Tensor], Tensor]) -> None:
        """Take the original to where `copy` makes one of it."""
        self.original.data = copy(self.original.data)
        self.aside = True

    def come_back(self) -> bool:
        """Take the original to where the model is; whether the stand-in still has its own memory.

        One that was set aside takes over the stand-in's memory, so that none is needed.
        """
        if self.aside:
            waiting = self.original.data
            self.original.data = self.stand_in.data.copy_(waiting, non_blocking=waiting.is_pinned())
            self.aside = False
            return False
        self.follow()
        return True

    def lead(self) -> None:
        """Take the stand-in, which is not in the module, to where the host has moved the model."""
        if self.stand_in.device != self.original.device:
            self.stand_in.data = self.stand_in.data.to(self.original.device)

    def park(self) -> None:
        """Note the state of the original, by which `still_true` tells later whether it changed."""
        self.base_version = _version(self.original)

    def still_true(self) -> bool:
        """Whether the stand-in still is what merging the module's weight would give.

        A host that loads another checkpoint into the same modules writes to the original, which
        torch counts, or replaces it. Inference tensors have no count: for them it cannot be told.
        """
        here, there = self.original, self.stand_in
        return (
            self.module._parameters.get(self.name) is (None if self.absent else here)
            and self.base_version is not None
            and self.base_version == _version(here)
            and (here.device, here.dtype) == (there.device, there.dtype)
        )


def finer(module: nn.Module, name: str, original: Tensor) -> Tensor | None:
    """A finer copy of a parameter, where its host keeps one.

    AUTOMATIC1111's WebUI keeps `fp16_weight` on a module whose weight it stores in fp8.
    """
    found = getattr(module, f"fp16_{name}", None)
    return found if isinstance(found, Tensor) and found.shape == original.shape else None


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class Buffers:
    """Memory of merged weights that are not in force, to be used again.

    Writing to fresh pages costs several times the merge itself, so memory is taken from here first.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[object, ...], list[nn.Parameter]] = {}

    def take(self, like: Tensor) -> nn.Parameter:
        """A parameter of the shape, layout, type and device of `like`, its values arbitrary."""
        if free := self._free.get(self._sort(like)):
            return free.pop()
        return nn.Parameter(torch.empty_like(like), requires_grad=False)

    def give(self, buffer: nn.Parameter) -> None:
        self._free.setdefault(self._sort(buffer), []).append(buffer)

    def empty(self) -> None:
        self._free.clear()

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for free in self._free.values() for buffer in free)

    @staticmethod
    def _sort(like: Tensor) -> tuple[object, ...]:
        return like.shape, like.stride(), like.dtype, like.device


def write(out: Tensor, base: Tensor, recipe: Recipe) -> None:
    """Compute the merged weight of `base` into `out`; rows that no stack names are copied."""
    merge_each(list(parts_of(out, base, recipe)))


def parts_of(out: Tensor, base: Tensor, recipe: Recipe) -> Iterator[Merge]:
    """What `write` has to compute, the rows that no stack names being copied on the way."""
    if recipe.transposed:
        out, base = out.t(), base.t()
    done = 0
    for start, stop in sorted(recipe.stacks):
        if start < done:
            raise ValueError(f"two layers share rows {start} to {done} of one weight")
        if done < start:
            out[done:start].copy_(base[done:start])
        stack = recipe.stacks[start, stop]
        if start == 0 and stop == len(base):
            yield Merge(out, base, stack)
        else:
            yield Merge(out[start:stop], base[start:stop], stack)
        done = stop
    if done < len(base):
        out[done:].copy_(base[done:])
