"""Changes that stand around another kind's: a sparse remainder, a bias; the ground for DoRA."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError
from extensions_lib.adapters.full import Full, bias_change
from extensions_lib.adapters.parts import OfParts, said

Self = TypeVar("Self", bound="Wrapper")


class Wrapper(OfParts):
    """An adapter with an `inner` one; its kind is that of the inner one, which has all the rest."""

    inner: Adapter

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["kind"] = self.inner.kind

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def scale(self) -> float:
        return self.inner.scale

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def flat(self) -> bool:
        return self.inner.flat

    def _made_for(self, found: tuple[int, ...]) -> bool:
        return self.inner._made_for(found)

    @property
    def changes_bias(self) -> bool:
        return self.inner.changes_bias

    def bias_delta(self, base_bias: Tensor | None) -> Tensor | None:
        return self.inner.bias_delta(base_bias)

    def first_ranks(self: Self, count: int) -> Self:
        cut = self.inner.first_ranks(count)
        return self if cut is self.inner else self._around(cut)

    def plain(self, dtype: torch.dtype) -> Adapter:
        return self.cast(dtype)._around(self.inner.plain(dtype))

    def to(self: Self, device: torch.device | str) -> Self:
        moved, inner = super().to(device), self.inner.to(device)
        return moved if inner is moved.inner else moved._around(inner)

    def _around(self: Self, inner: Adapter) -> Self:
        changed: Self = replace(cast(Any, self), inner=inner)
        return changed

    def parameters(self) -> dict[str, Tensor]:
        return {**self.inner.parameters(), **super().parameters()}

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), **super().tensors()}

    @classmethod
    def from_tensors(cls: type[Self], parts: Mapping[str, Tensor]) -> Adapter:
        # Whatever kind the rest is: the one list of kinds stands above all of them.
        from extensions_lib.adapters import adapter_from

        own = {name: parts.get(part) for name, part in cls.PARTS.items()}
        rest = {name: part for name, part in parts.items() if name not in cls.PARTS.values()}
        return cls(inner=adapter_from(rest), **own)  # type: ignore[call-arg]

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return any(part in part_names for part in cls.PARTS.values())


@dataclass(eq=False)
class Biased(Wrapper):
    """diff_b [out], a change of the bias, beside a kind that knows the weight alone."""

    inner: Adapter
    diff_b: Tensor

    TITLE: ClassVar[str] = "a change of the bias"
    PARTS: ClassVar[Mapping[str, str]] = {"diff_b": "diff_b"}
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]] = {"diff_b": (1,)}

    def __post_init__(self) -> None:
        """Refuse a second change of the same bias."""
        super().__post_init__()
        if self.inner.changes_bias:
            both = ", ".join(sorted(self.tensors()))
            raise AdapterError(f"the bias is changed twice, by diff_b and by another part: {both}")

    @property
    def changes_weight(self) -> bool:
        return self.inner.changes_weight

    @property
    def changes_bias(self) -> bool:
        return True

    def bias_delta(self, base_bias: Tensor | None) -> Tensor | None:
        return bias_change(self.diff_b, base_bias)

    def low_rank(self, base_shape: Sequence[int]) -> Any:
        return self.inner.low_rank(base_shape)

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        return self.inner.added(total, base, multiplier, out=out)

    def plain(self, dtype: torch.dtype) -> Adapter:
        return self.inner.plain(dtype)

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        own = {*Full.PARTS.values(), "alpha", "scale"}
        return "diff_b" in part_names and not own.issuperset(part_names)


@dataclass(eq=False)
class Sparse(Wrapper):
    """What a product of few ranks left over, as LyCORIS' extraction keeps it: a few single values.

    indices [d, n], values [n], size [d] of the weight or its rows and columns; added to the
    product before the scale. Named "bias" in files, of the matrix, not of the layer.
    """

    inner: Adapter
    values: Tensor
    indices: Tensor | None = None
    size: Tensor | None = None

    TITLE: ClassVar[str] = "a sparse remainder"
    PARTS: ClassVar[Mapping[str, str]] = {
        "values": "bias_values", "indices": "bias_indices", "size": "bias_size",
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse positions outside the weight, and what is no list of values at positions."""
        vars(self)["kind"] = self.inner.kind
        for name, dims in (("values", 1), ("indices", 2), ("size", 1)):
            part, floats = getattr(self, name), name == "values"
            if part is None:
                raise AdapterError(f"{self.TITLE} needs {self.PARTS[name]}")
            wrong = part.is_complex() or part.dtype == torch.bool
            if part.dim() != dims or part.is_floating_point() != floats or wrong:
                sort = "floats" if floats else "integers"
                raise AdapterError(f"{self.PARTS[name]} is {said(part)}: expected {dims}-D {sort}")
        assert self.indices is not None and self.size is not None
        if self.indices.shape != (len(self.size), len(self.values)) or not len(self.size):
            raise AdapterError(f"numbers of positions and values do not agree: {self.said()}")
        positions, size = self.indices.long(), self.size.long()[:, None]
        if (size < 1).any() or (positions < 0).any() or (positions >= size).any():
            raise AdapterError(f"bias_indices lie outside of {self.size.tolist()}")

    def misfit(self, base_shape: Sequence[int]) -> str | None:
        assert self.size is not None
        if problem := self.inner.misfit(base_shape):
            return problem
        known = torch.Size([*base_shape[:1], self.inputs_of(base_shape), *base_shape[2:]])
        size = torch.Size(self.size.tolist())
        if size.numel() == known.numel() and size[0] == known[0]:
            return None
        return f"expected a sparse remainder for {list(known)}, found {list(size)}"

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        assert self.indices is not None and self.size is not None
        places = torch.zeros(len(self.values), dtype=torch.long, device=base.device)
        for positions, size in zip(self.indices.long(), self.size.tolist(), strict=True):
            places = places * size + positions
        result = self.inner.added(total, base, multiplier, out=out).view(-1)
        values, alpha = self.values.to(total.dtype), self.scale * multiplier
        if out is None:
            return result.index_add(0, places, values, alpha=alpha).view(base.shape)
        return result.index_add_(0, places, values, alpha=alpha).view(base.shape)

    @property
    def row_unit(self) -> None:
        return None

    def cast(self, dtype: torch.dtype) -> "Sparse":
        return replace(self, values=self.values.to(dtype))

    def parameters(self) -> dict[str, Tensor]:
        return {**self.inner.parameters(), "bias_values": self.values}

    def tensors(self) -> dict[str, Tensor]:
        assert self.indices is not None and self.size is not None
        own = {"bias_indices": self.indices, "bias_values": self.values, "bias_size": self.size}
        return {**self.inner.tensors(), **own}
