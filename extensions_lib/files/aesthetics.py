"""Aesthetic embeddings: the mean of CLIP's vectors of some pictures, [1, width] in a `.pt`.

Beside them a text projection is needed, which checkpoints of Stable Diffusion leave out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.header import AGAIN
from extensions_lib.files.safe import read_any_header, read_header, read_tensors
from extensions_lib.models.strangers import describe

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".bin", ".safetensors")
_PROJECTIONS = ("text_projection.weight", "text_model.text_projection.weight")


def aesthetic_width(path: str | os.PathLike[str]) -> int:
    """The numbers in its vector, without torch. Raises FileProblem if it is something else."""
    shapes = read_any_header(path).shapes
    only = next(iter(shapes.values()))
    if len(shapes) != 1 or len(only) not in (1, 2) or 0 in only or only[:-1] not in ((), (1,)):
        raise FileProblem(
            f"{path}: is no aesthetic embedding, which holds one vector: {describe(shapes)}"
        )
    return only[-1]


def read_aesthetic(path: str | os.PathLike[str]) -> Tensor:
    """Its vector [width], float32. Raises FileProblem."""
    import torch

    aesthetic_width(path)
    (vector,) = read_tensors(path).values()
    vector = vector.detach().reshape(-1).to(torch.float32, copy=True)
    if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise FileProblem(f"{path}: holds no direction, but zeros or values that are no numbers")
    return vector


def find_projection(folders: Iterable[Path], into: int, out: int) -> Path | None:
    """The first safetensors file with a text projection [out, into]; None if there is none.

    Files that cannot be read are passed over.
    """
    for folder in folders:
        for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
            try:
                shapes = read_header(path).shapes
            except FileProblem:
                continue
            if any(shapes.get(name) == (out, into) for name in _PROJECTIONS):
                return path
    return None


def read_projection(path: Path) -> Tensor:
    """The text projection of a CLIP file [out, in], float32. Raises FileProblem."""
    import torch

    shapes = read_header(path).shapes
    names = [name for name in _PROJECTIONS if name in shapes]
    if not names:
        raise FileProblem(f"{path}: has no text projection; {AGAIN}")
    return read_tensors(path, names[:1])[names[0]].to(torch.float32, copy=True)
