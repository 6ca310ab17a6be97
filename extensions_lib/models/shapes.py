"""Questions to the key shapes of a file, answered or refused in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from extensions_lib.errors import FileProblem

Shapes = Mapping[str, tuple[int, ...]]


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes under a prefix, without it."""
    return {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}


def shape_at(shapes: Shapes, key: str, dims: int | None) -> tuple[int, ...]:
    """The shape of a tensor; FileProblem if it is missing, empty or not of `dims` dimensions."""
    shape = tuple(shapes[key]) if key in shapes else None
    if shape is None:
        raise FileProblem(f"the checkpoint is incomplete: it has no tensor {key!r}")
    if (dims is not None and len(shape) != dims) or 0 in shape:
        raise FileProblem(
            f"the tensor {key!r} should have {dims or 'two or four'} dimensions above 0, and has "
            f"the shape {list(shape)}"
        )
    return shape


def count(keys: Iterable[str], prefix: str) -> int:
    """How many numbered children `prefix` has; their numbers must have no gap."""
    number = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(match[1]) for key in keys if (match := number.match(key))}
    gap = next((i for i in range(len(found)) if i not in found), None)
    if gap is not None:
        raise FileProblem(f"the checkpoint is incomplete: it has no tensors {prefix}{gap}.…")
    return len(found)
