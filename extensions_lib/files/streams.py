"""Tensor files larger than memory: read one tensor at a time, written as they are made.

What is held is one tensor, in memory of its own: nothing stays mapped.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from extensions_lib.atomic import atomic_write
from extensions_lib.errors import FileProblem
from extensions_lib.files.dtypes import torch_dtype
from extensions_lib.files.header import AGAIN, DTYPE_BITS, Header, opened, short
from extensions_lib.files.safe import (
    header_bytes,
    is_pickle,
    read_any_header,
    read_header,
    read_tensors,
    tensor_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

Plan = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype as safetensors names it, shape
_ROOM = 1 << 20  # bytes that shall stay free on a disk


class TensorReader:
    """The tensors of a file by name, read when asked for. Use it in a `with`.

    A pickle in PyTorch's zip format is mapped, an older one read as a whole at the first tensor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the header. Raises FileProblem."""
        self.path = Path(path)
        self._pickled = is_pickle(self.path)
        self.header: Header = (read_any_header if self._pickled else read_header)(self.path)
        self._loaded: dict[str, Tensor] | None = None
        self._file: IO[bytes] | None = None
        self._closing = ExitStack()

    def __enter__(self) -> TensorReader:
        if not self._pickled:
            self._file = self._closing.enter_context(opened(self.path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.close()
        self._file, self._loaded = None, None

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in its own dtype on the CPU. Raises FileProblem."""
        if self._pickled:
            if self._loaded is None:
                self._loaded = read_tensors(self.path)
            return self._loaded[name]
        import torch

        assert self._file is not None, "a TensorReader is used in a with"
        info = self.header.tensors[name]
        dtype = torch_dtype(info.dtype)
        if dtype is None:
            raise FileProblem(
                f"{self.path}: '{short(name)}' has the dtype {info.dtype}, which this PyTorch lacks"
            )
        tensor = torch.empty(info.shape, dtype=dtype)
        self._file.seek(self.header.data_start + info.start)
        room = tensor_bytes(tensor)
        if len(room) and self._file.readinto(room) != len(room):  # type: ignore[attr-defined]
            raise FileProblem(f"{self.path}: became shorter while it was read; {AGAIN}")
        return tensor


def write_stream(
    path: str | os.PathLike[str],
    plan: Plan,
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    fresh: bool = False,
) -> None:
    """Writes a safetensors file, atomically, asking `make` for one tensor after the other.

    `make` is asked in the file's own order and gives what the plan says; whatever it raises leaves
    nothing behind. `fresh` as in `atomic_write`. Raises FileProblem: also where the disk has no
    room for the whole.
    """
    path = Path(path)
    head, order = header_bytes(plan, metadata or {}, str(path))
    _check_room(path, len(head) + sum(_size(*plan[name]) for name in order))
    with atomic_write(path, fresh=fresh) as temporary, open(temporary, "wb") as file:
        file.write(head)
        for name in order:
            tensor = make(name)
            dtype, shape = plan[name]
            if tuple(tensor.shape) != shape or tensor.dtype != torch_dtype(dtype):
                raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not as planned")
            file.write(tensor_bytes(tensor))


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPE_BITS[dtype] // 8


def _check_room(path: Path, size: int) -> None:
    """Says at once that a file of gigabytes will not fit, not after minutes."""
    folder = next((each for each in path.absolute().parents if each.is_dir()), None)
    free = shutil.disk_usage(folder).free if folder else size + _ROOM
    if size + _ROOM > free:
        raise FileProblem(
            f"{path}: needs {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB;"
            " free some space, or name a file on another disk"
        )
