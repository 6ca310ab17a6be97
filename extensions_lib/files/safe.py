"""Bounded reading and atomic writing of tensor files.

Nothing here trusts a file: sizes, offsets and types are checked against the bytes that are there
before anything is allocated, and a pickle is read for the names it would call before it is opened.
Headers are read without torch.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.atomic import atomic_write, write_text
from extensions_lib.errors import FileProblem
from extensions_lib.files.header import (
    AGAIN,
    DTYPE_BITS,
    DTYPE_RANK,
    MAX_HEADER,
    Header,
    TensorInfo,
    foreign_content,
    is_safetensors,
    read_header,
    short,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PICKLE_SUFFIXES",
    "Header",
    "TensorInfo",
    "atomic_write",
    "foreign_content",
    "header_bytes",
    "is_pickle",
    "is_safetensors",
    "read_any_header",
    "read_file",
    "read_header",
    "read_tensors",
    "serialised",
    "tensor_bytes",
    "write_safetensors",
    "write_text",
]

PICKLE_SUFFIXES = frozenset({".pt", ".ckpt", ".bin", ".pth"})


# --- tensors ----------------------------------------------------------------------------------


def read_any_header(path: str | os.PathLike[str]) -> Header:
    """As `read_header`, for pickles (.pt .ckpt .bin .pth) too: shapes without torch, without code.

    A pickle's tensors have no offsets here (0, 0) and no metadata.
    Raises FileProblem.
    """
    if is_pickle(path):
        from extensions_lib.files.pickles import read_pickle_header

        return read_pickle_header(Path(path))
    return read_header(path)


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether the file is to be read as a pickle: named so, and not safetensors under that name."""
    return Path(path).suffix.lower() in PICKLE_SUFFIXES and not is_safetensors(path)


def read_tensors(
    path: str | os.PathLike[str], keys: Collection[str] | None = None
) -> dict[str, Tensor]:
    """All tensors of a file on the CPU in their own dtype, or those named in `keys`.

    A safetensors file is mapped, not copied. Pickles load weights only; {"state_dict": …} is
    flattened, and nested dicts get dotted names.
    Raises FileProblem: also for a key that is not there, and for code in a pickle, by name.
    """
    return read_file(path, keys)[0]


def read_file(
    path: str | os.PathLike[str], keys: Collection[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_tensors`, with the file's metadata; a pickle has none. Raises FileProblem."""
    path = Path(path)
    if is_pickle(path):
        from extensions_lib.files.pickles import flatten, read_pickle

        tensors = flatten(read_pickle(path), path)
        if keys is None:
            return tensors, {}
        _check_keys(path, keys, tensors)
        return {key: tensors[key] for key in keys}, {}
    header = read_header(path)
    if keys is not None:
        _check_keys(path, keys, header.tensors)
    chosen = header.tensors if keys is None else keys
    return _mapped_tensors(path, chosen), dict(header.metadata)


def _check_keys(path: Path, keys: Collection[str], there: Collection[str]) -> None:
    missing = [key for key in keys if key not in there]
    if missing:
        raise FileProblem(
            f"{path}: has no tensor '{short(missing[0])}' ({len(missing)} of {len(keys)} missing)"
        )


def _mapped_tensors(path: Path, keys: Collection[str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        # AttributeError/KeyError: a dtype that this torch does not have
        raise FileProblem(f"{path}: cannot be loaded ({short(error)}); {AGAIN}") from error


# --- writing ----------------------------------------------------------------------------------


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    fresh: bool = False,
) -> None:
    """Writes tensors and metadata as one safetensors file, atomically, a tensor at a time.

    The bytes are those the safetensors library would write. `fresh` as in `atomic_write`.
    Raises FileProblem (metadata that is not text, a dtype the format lacks, a full disk).
    """
    chunks = serialised(tensors, metadata or {}, str(path))
    first = next(chunks)  # so that a bad dtype or metadata is found before anything is written
    with atomic_write(path, fresh=fresh) as temporary, open(temporary, "wb") as file:
        for chunk in itertools.chain((first,), chunks):
            file.write(chunk)


def serialised(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], label: str = "the file"
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: the header first, then the tensors one by one."""
    plan = {
        name: (_dtype_name(name, tensor, label), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    head, order = header_bytes(plan, metadata, label)
    yield head
    for name in order:
        yield tensor_bytes(tensors[name])


def header_bytes(
    plan: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    label: str = "the file",
) -> tuple[bytes, list[str]]:
    """The first bytes of a safetensors file, and the order in which its tensors then follow.

    plan: name -> dtype as safetensors names it, and shape. Raises FileProblem.
    """
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise FileProblem(f"{label}: the metadata '{short(key)}' must be text")
    order = sorted(plan, key=lambda name: (-DTYPE_RANK[plan[name][0]], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    reached = 0
    for name in order:
        dtype, shape = plan[name]
        size = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [reached, reached + size],
        }
        reached += size
    try:
        raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise FileProblem(f"{label}: a name or metadata is not valid Unicode ({error})") from None
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise FileProblem(f"{label}: names and metadata take {len(raw)} bytes, over {MAX_HEADER}")
    return len(raw).to_bytes(8, "little") + raw, order


def _dtype_name(name: str, tensor: Tensor, label: str) -> str:
    from extensions_lib.files.dtypes import safetensors_name

    if name == "__metadata__":
        raise FileProblem(f"{label}: no tensor may be named '__metadata__'")
    found = safetensors_name(tensor.dtype)
    if found is None:
        raise FileProblem(f"{label}: '{name}' has dtype {tensor.dtype}, which cannot be saved")
    return found


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw little-endian bytes of a tensor, in C order; no copy if it is so already."""
    import torch

    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data
