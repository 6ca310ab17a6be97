"""The precision that a tensor is written in, and no number lost on the way there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extensions_lib.toolbox.work import PRECISIONS, ToolProblem

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = frozenset(
    ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
)


def planned(dtype: str, precision: str) -> str:
    """What a tensor of this dtype becomes; whole numbers stay what they are."""
    return PRECISIONS.get(precision, dtype) if dtype in FLOATS else dtype


def cast(tensor: Tensor, dtype: str, name: str) -> Tensor:
    """The tensor in this dtype. Raises ToolProblem where a number is too large for it."""
    import torch

    from extensions_lib.files.dtypes import torch_dtype

    wanted = torch_dtype(dtype)
    if wanted is None or tensor.dtype == wanted or not tensor.is_floating_point():
        return tensor
    made = tensor.to(wanted)
    narrow = wanted == torch.float16 and not bool(torch.isfinite(made).all())
    if narrow and bool(torch.isfinite(tensor.float()).all()):
        most = float(tensor.float().abs().max())
        raise ToolProblem(
            f"{name}: holds {most:g}, which is too large for fp16; choose bf16 or fp32"
        )
    return made
