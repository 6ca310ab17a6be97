"""The weights of a checkpoint by canonical layer, read one at a time."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING

from extensions_lib.files.checkpoints import CheckpointKeys, checkpoint_keys
from extensions_lib.files.streams import TensorReader
from extensions_lib.models.families import Structure
from extensions_lib.models.layouts import Part, parts

if TYPE_CHECKING:
    from torch import Tensor


class Weights:
    """A checkpoint that is read layer by layer, in a `with`; one tensor is held at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the header. Raises FileProblem: no complete SD1, SD2 or SDXL checkpoint."""
        self.keys: CheckpointKeys = checkpoint_keys(path)
        self.structure: Structure = self.keys.structure
        self._parts: dict[tuple[str, bool], Part] = {
            (part.layer, part.name.endswith(".bias")): part for part in parts(self.structure)
        }
        self._reader = TensorReader(path)
        self._last: tuple[str, Tensor] | None = None

    def __enter__(self) -> Weights:
        self._reader.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._last = None
        self._reader.__exit__(kind, error, trace)

    def __contains__(self, layer: str) -> bool:
        return (layer, False) in self._parts

    def weight(self, layer: str) -> Tensor:
        """A layer's weight in its shape in diffusers. Raises FileProblem, KeyError."""
        return self._taken(self._parts[layer, False])

    def bias(self, layer: str) -> Tensor | None:
        """A layer's bias, None where it has none. Raises FileProblem."""
        part = self._parts.get((layer, True))
        return None if part is None else self._taken(part)

    def stored(self, key: str) -> Tensor:
        """A tensor by its standard key in a checkpoint. Raises FileProblem."""
        return self.raw(self.keys.names[key])

    def raw(self, key: str) -> Tensor:
        """Any tensor of the file, by its key there. Raises FileProblem."""
        # The rows of a fused weight are asked for one after the other.
        if self._last is None or self._last[0] != key:
            self._last = None  # its memory is free before the next is read
            self._last = (key, self._reader[key])
        return self._last[1]

    def _taken(self, part: Part) -> Tensor:
        return part.taken(self.stored(part.key))
