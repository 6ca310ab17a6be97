"""What all kinds that are made of named tensors have in common: reading, checking, moving.

A kind is a dataclass whose tensor fields stand in PARTS; alpha and a stored scale are numbers.
"""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError

Self = TypeVar("Self", bound="OfParts")
_NUMBERS = {"alpha": "alpha", "fixed_scale": "scale"}


class OfParts(Adapter):
    """An adapter whose tensors are the fields in PARTS (field -> canonical part name).

    Its subclasses are dataclasses. DIMS: how many dimensions each tensor may have. TITLE: how
    messages call the kind.
    """

    PARTS: ClassVar[Mapping[str, str]]
    DIMS: ClassVar[Mapping[str, tuple[int, ...]]]
    TITLE: ClassVar[str]

    alpha: float | None = None
    fixed_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is missing, empty, not of floats or of a wrong number of dimensions."""
        for field in _fields(self):
            part = self.PARTS.get(field.name)
            value = getattr(self, field.name)
            if part is None:
                continue
            if value is None:
                if field.default is MISSING:
                    raise AdapterError(f"{self.TITLE} needs {part}")
                continue
            dims = self.DIMS[field.name]
            if value.dim() not in dims or not value.is_floating_point() or not value.numel():
                expected = " or ".join(f"{each}-D" for each in dims)
                raise AdapterError(
                    f"{part} is {said(value)}: expected {expected} floats, not empty"
                )

    @property
    def scale(self) -> float:
        """A stored scale, or alpha / rank; 1 where there is no alpha or no rank."""
        if self.fixed_scale is not None:
            return float(self.fixed_scale)
        return 1.0 if self.alpha is None or self.rank is None else float(self.alpha / self.rank)

    @property
    def row_unit(self) -> int | None:
        return 1

    def plain(self, dtype: torch.dtype) -> Adapter:
        return self.cast(dtype)

    def cast(self: Self, dtype: torch.dtype) -> Self:
        """The same with its tensors in `dtype`; itself if they are."""
        held = self._held()
        if {tensor.dtype for tensor in held.values()} <= {dtype}:
            return self
        return self._with({name: tensor.to(dtype) for name, tensor in held.items()})

    def to(self: Self, device: torch.device | str) -> Self:
        device = torch.device(device)
        held = self._held()
        if {tensor.device for tensor in held.values()} <= {device}:
            return self
        # To a GPU: what the CPU does for one tensor overlaps with the copy of another.
        alone = device.type == "cuda"
        return self._with({n: each.to(device, non_blocking=alone) for n, each in held.items()})

    def _with(self: Self, tensors: Mapping[str, Tensor]) -> Self:
        changed: Self = replace(cast(Any, self), **tensors)
        return changed

    def _held(self) -> dict[str, Tensor]:
        """Its tensors by field."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def parameters(self) -> dict[str, Tensor]:
        return {self.PARTS[name]: value for name, value in self._held().items()}

    def tensors(self) -> dict[str, Tensor]:
        parts = self.parameters()
        for name, part in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None:
                parts[part] = as_tensor(value)
        return parts

    def said(self, *names: str) -> str:
        """These fields (all tensors without names) with their shapes, for messages."""
        held = self._held()
        return ", ".join(f"{self.PARTS[name]} {said(held[name])}" for name in names or held)

    @classmethod
    def from_tensors(cls: type[Self], parts: Mapping[str, Tensor]) -> Adapter:
        return cls._read(parts)

    @classmethod
    def _read(cls: type[Self], parts: Mapping[str, Tensor]) -> Self:
        rest = dict(parts)
        names = {field.name for field in _fields(cls)}
        found: dict[str, Any] = {
            name: rest.pop(part, None) for name, part in cls.PARTS.items() if name in names
        }
        for name, part in _NUMBERS.items():
            if name in names:
                found[name] = number(part, rest.pop(part, None))
        if rest:
            raise AdapterError(f"{cls.TITLE} has no part {', '.join(sorted(rest))}")
        return cls(**found)

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        needed = [f.name for f in _fields(cls) if f.name in cls.PARTS and f.default is MISSING]
        return all(cls.PARTS[name] in part_names for name in needed)


def _fields(kind: Any) -> tuple[Any, ...]:
    return fields(kind)


def number(name: str, part: Tensor | None) -> float | None:
    """The one number in a part. Raises AdapterError."""
    if part is None:
        return None
    if part.numel() != 1 or part.is_complex():
        raise AdapterError(f"{name} is {said(part)}: expected one number")
    return float(part)


def as_tensor(value: float) -> Tensor:
    """A number as fp32, or as fp64 where fp32 would round it."""
    short = torch.tensor(value, dtype=torch.float32)
    return short if float(short) == value else torch.tensor(value, dtype=torch.float64)


def said(part: Tensor) -> str:
    """Shape and type of a part, for messages."""
    return f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}"


def positive(name: str, value: int | None) -> int:
    """A rank or size as it is. Raises AdapterError for one below 1."""
    if value is None or value < 1:
        raise AdapterError(f"{name} is {value}: expected at least 1")
    return value


def as_matrix(part: Tensor) -> Tensor:
    """[a, b] or [a, b, *k] -> [a, b * k]."""
    return part.flatten(1) if part.dim() > 2 else part
