"""The names that the safetensors format and PyTorch have for one dtype."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# safetensors name -> torch attribute; older torch versions lack some of them
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32",
    "U32": "uint32", "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


@functools.cache
def _names() -> dict[torch.dtype, str]:
    import torch

    return {getattr(torch, name): key for key, name in _TORCH_NAMES.items() if hasattr(torch, name)}


def safetensors_name(dtype: torch.dtype) -> str | None:
    """ "F16" for torch.float16, …; None if the format has no such type."""
    return _names().get(dtype)


def torch_dtype(name: str) -> torch.dtype | None:
    """torch.float16 for "F16", …; None if this torch has no such type."""
    import torch

    return getattr(torch, _TORCH_NAMES[name], None) if name in _TORCH_NAMES else None
