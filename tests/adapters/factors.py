"""Random adapters of every form, for the tests here and in patching."""

from __future__ import annotations

import torch

from extensions_lib.adapters import LoRA

# name: shape of the weight, and whether a lora_mid carries the kernel
FORMS = {
    "linear": ((12, 10), False),
    "conv 1x1": ((12, 10, 1, 1), False),
    "conv 3x3": ((12, 10, 3, 3), False),
    "tucker": ((12, 10, 3, 3), True),
}


def random_lora(
    shape: tuple[int, ...],
    rank: int = 4,
    alpha: float | None = 2.0,
    *,
    tucker: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LoRA:
    """A LoRA whose change is about as large as a trained one's beside weights of size 1."""
    generator = torch.Generator().manual_seed(seed)
    lora = LoRA.fresh(shape, rank, alpha, tucker=tucker, generator=generator)
    lora.up = torch.randn(lora.up.shape, generator=generator)
    return LoRA(
        lora.up.to(dtype),
        lora.down.to(dtype),
        None if lora.mid is None else lora.mid.to(dtype),
        alpha,
    )


def exact(lora: LoRA) -> torch.Tensor:
    """The change by the definition, in float64, index by index where it is short to say."""
    up, down = lora.up.double().flatten(1), lora.down.double()
    if lora.mid is not None:
        change = torch.einsum("om,mnhw,ni->oihw", up, lora.mid.double(), down.flatten(1))
    else:
        change = torch.einsum("or,r...->o...", up, down)
    return change * (1.0 if lora.alpha is None else lora.alpha / lora.down.shape[0])
