"""LoRA and LoCon: the change is a product of two thin factors, delta = alpha/r * U @ D.

Hu et al. 2021 (arXiv 2106.09685) for linear layers. A k x k convolution has down [r, in, kh, kw]
and up [out, r, 1, 1]; its Tucker form keeps both at 1x1 and puts the kernel into a core, mid
[r, r, kh, kw] (Hyeon-Woo et al. 2021, arXiv 2108.06098).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from extensions_lib.adapters.base import (
    Adapter,
    AdapterError,
    LowRank,
    full_precision,
    pad_inputs,
    working_dtype,
)

PARTS = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}


@dataclass(eq=False)
class LoRA(Adapter):
    """up [out, r(,1,1)], down [r, in(,kh,kw)], mid [r, r, kh, kw] or None; alpha None: scale 1."""

    up: Tensor
    down: Tensor
    mid: Tensor | None = None
    alpha: float | None = None

    kind: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        """Refuse factors that cannot be multiplied."""
        up, down, mid = self.up, self.down, self.mid
        for name, part in (("up", up), ("down", down), ("mid", mid)):
            if part is not None and (part.dim() not in (2, 4) or not part.is_floating_point()):
                raise AdapterError(f"{PARTS[name]} is {_said(part)}: expected 2-D or 4-D floats")
        if up.shape[2:].numel() != 1:
            raise AdapterError(f"{PARTS['up']} is {_said(up)}: expected [out, rank] or 1x1")
        inner = tuple(mid.shape[:2]) if mid is not None else (down.shape[0], down.shape[0])
        if (up.shape[1], down.shape[0]) != inner or 0 in inner:
            parts = [f"{PARTS[k]} {_said(t)}" for k, t in vars(self).items() if torch.is_tensor(t)]
            raise AdapterError("ranks do not agree: " + ", ".join(parts))
        if mid is not None and down.shape[2:].numel() != 1:
            raise AdapterError(f"{PARTS['down']} is {_said(down)}: expected 1x1 beside a lora_mid")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def low_rank(self, base_shape: Sequence[int]) -> LowRank:
        if problem := self.misfit(base_shape):
            raise AdapterError(problem)
        dtype = working_dtype(self.up, self.down)
        up = self.up.flatten(1).to(dtype)
        down = self.down.to(dtype)
        if self.mid is not None:
            with full_precision(down.device):
                down = torch.einsum("mnhw,nj->mjhw", self.mid.to(dtype), down.flatten(1))
        return LowRank(up, pad_inputs(down, base_shape[1]).flatten(1), self.scale)

    def first_ranks(self, count: int) -> "LoRA":
        """Cut to the first ranks, the scale staying alpha over the full rank (as A1111 has it)."""
        if count < 1:
            raise AdapterError(f"cannot keep the first {count} ranks of a LoRA: at least 1")
        if count >= self.rank:
            return self
        mid = None if self.mid is None else self.mid[:count, :count]
        return LoRA(self.up[:, :count], self.down[:count], mid, self.scale * count)

    def tensors(self) -> dict[str, Tensor]:
        parts = {PARTS["up"]: self.up, PARTS["down"]: self.down}
        if self.mid is not None:
            parts[PARTS["mid"]] = self.mid
        if self.alpha is not None:
            parts["alpha"] = torch.tensor(self.alpha)
        return parts

    def to(self, device: torch.device | str) -> "LoRA":
        device = torch.device(device)
        if self.up.device == self.down.device == device:
            return self
        mid = None if self.mid is None else self.mid.to(device)
        return replace(self, up=self.up.to(device), down=self.down.to(device), mid=mid)

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return PARTS["up"] in part_names and PARTS["down"] in part_names

    @classmethod
    def from_tensors(cls, parts: Mapping[str, Tensor]) -> "LoRA":
        rest = dict(parts)
        try:
            up, down = rest.pop(PARTS["up"]), rest.pop(PARTS["down"])
        except KeyError as missing:
            raise AdapterError(f"a LoRA needs {missing}") from None
        mid = rest.pop(PARTS["mid"], None)
        alpha, scale = (_number(name, rest.pop(name, None)) for name in ("alpha", "scale"))
        if rest:
            raise AdapterError(f"a LoRA has no part {', '.join(sorted(rest))}")
        # A stored scale overrides alpha / rank.
        return cls(up, down, mid, alpha if scale is None else scale * down.shape[0])

    @classmethod
    def fresh(
        cls,
        shape: Sequence[int],
        rank: int,
        alpha: float | None = None,
        *,
        tucker: bool = False,
        generator: torch.Generator | None = None,
    ) -> "LoRA":
        """A new one for a weight of this shape, which changes nothing yet: up is zero.

        The rest is drawn as torch draws a fresh layer (Kaiming uniform, a = sqrt 5). With `tucker`
        a k x k convolution gets a lora_mid.
        """
        out, inputs, *kernel = shape
        ones = [1] * len(kernel)
        core = tucker and math.prod(kernel) > 1
        down = _drawn([rank, inputs, *(ones if core else kernel)], generator)
        mid = _drawn([rank, rank, *kernel], generator) if core else None
        return cls(torch.zeros([out, rank, *ones]), down, mid, alpha)


def _drawn(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)


def _number(name: str, part: Tensor | None) -> float | None:
    if part is not None and part.numel() != 1:
        raise AdapterError(f"{name} is {_said(part)}: expected one number")
    return None if part is None else float(part)


def _said(part: Tensor) -> str:
    return f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}"
