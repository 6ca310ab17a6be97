"""ControlNet-LLLite: what a condition picture adds to the input of one layer.

    said    = conditioning stack of the picture            [1, tokens, e], once a picture
    side(x) = up(relu(mid([said, relu(down(x))])))         x [batch, tokens, width]
    layer(x + weight * side(x))

The stack is made of convolutions whose stride is their kernel, with ReLU between them, so that one
token of a layer sees just the pixels it stands for. Formula and part names are those of kohya's
sd-scripts (networks/control_net_lllite.py). No Adapter: it changes what a layer is given, not its
weight, and cannot be merged.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from extensions_lib.adapters.base import AdapterError, full_precision, working_dtype
from extensions_lib.adapters.lora import drawn
from extensions_lib.adapters.parts import positive, said

CHANNELS = 3  # of a picture
LATENT = 8  # pixels that one latent stands for
# depth -> kernels of the stack: to 1/8, 1/16 and 1/32 of the picture's sides
KERNELS: Mapping[int, tuple[int, ...]] = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}
_STACK = re.compile(r"conditioning1\.(0|2|4)")
_HEADS = ("down.0", "mid.0", "up.0")


class Affine(NamedTuple):
    """weight [out, in] or [out, in, k, k], bias [out]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class LLLite:
    """The side path of one layer.

    stack: convolutions [.., 3, k, k] … [e, .., k, k]; down [mlp, width], mid [mlp, e + mlp],
    up [width, mlp], each also as a 1x1 convolution. Raises AdapterError where they do not fit
    together.
    """

    stack: tuple[Affine, ...]
    down: Affine
    mid: Affine
    up: Affine

    def __post_init__(self) -> None:
        """Refuse parts that cannot be applied one after the other."""
        known = CHANNELS
        for number, (weight, bias) in enumerate(self.stack):
            square = weight.dim() == 4 and weight.shape[2] == weight.shape[3]
            if not square or weight.shape[1] != known or bias.shape != weight.shape[:1]:
                raise AdapterError(
                    f"conditioning1.{2 * number} is {said(weight)} with bias {said(bias)}: expected"
                    f" a square convolution of {known} channels"
                )
            known = weight.shape[0]
        if self.stride not in {math.prod(kernels) for kernels in KERNELS.values()}:
            raise AdapterError(
                f"its conditioning stack shrinks a picture {self.stride} times: expected 8, 16 or"
                " 32 times"
            )
        mlp, width = self.mlp_dim, self.width
        for name, (weight, bias), shape in (
            ("down.0", self.down, (mlp, width)),
            ("mid.0", self.mid, (mlp, self.cond_dim + mlp)),
            ("up.0", self.up, (width, mlp)),
        ):
            if _matrix_shape(weight) != shape or bias.shape != shape[:1]:
                raise AdapterError(
                    f"{name} is {said(weight)} with bias {said(bias)}: expected {list(shape)}"
                )

    @property
    def stride(self) -> int:
        """Pixels of a picture, along each side, that one token of the layer stands for."""
        return math.prod(affine.weight.shape[-1] for affine in self.stack)

    @property
    def cond_dim(self) -> int:
        """Width of what the stack says of a picture."""
        return self.stack[-1].weight.shape[0]

    @property
    def mlp_dim(self) -> int:
        return self.up.weight.shape[1]

    @property
    def width(self) -> int:
        """Width of the layer's input."""
        return self.up.weight.shape[0]

    def misfit(self, base_shape: Sequence[int]) -> str | None:
        """Why it does not fit a layer whose weight has this shape, None if it does."""
        if len(base_shape) > 1 and base_shape[1] == self.width:
            return None
        found = base_shape[1] if len(base_shape) > 1 else "none"
        return f"made for an input {self.width} wide, the layer's is {found}"

    def told(self, picture: Tensor) -> Tensor:
        """What a picture [n, 3, h, w] in [-1, 1] says to `mid`: [n, tokens, mlp], fp32 or fp64.

        Where the sides are no multiples of `stride`, the last row and column are drawn out: the
        UNet rounds up too. Differentiable; computed once, whatever the number of steps.
        """
        dtype = working_dtype(picture, self.mid.weight)
        with full_precision(picture.device):
            x = picture.to(dtype)
            right, below = -x.shape[3] % self.stride, -x.shape[2] % self.stride
            x = F.pad(x, (0, right, 0, below), mode="replicate") if right or below else x
            for number, (weight, bias) in enumerate(self.stack):
                x = F.relu(x) if number else x
                x = F.conv2d(x, weight.to(dtype), bias.to(dtype), stride=weight.shape[-1])
            part = _matrix(self.mid.weight)[:, : self.cond_dim]
            return F.linear(x.flatten(2).mT, part.to(dtype), self.mid.bias.to(dtype))

    def side(self, x: Tensor, told: Tensor) -> Tensor:
        """What is added to the layer's input, at weight 1.

        x [batch, tokens, width] or [batch, width, h, w]; told as `told` gives it, of one picture or
        of as many as x has. All in one dtype, on one device. Differentiable.
        """
        rows = x.flatten(2).mT if x.dim() == 4 else x
        hidden = F.relu(F.linear(rows, _matrix(self.down.weight), self.down.bias))
        hidden = F.linear(hidden, _matrix(self.mid.weight)[:, self.cond_dim :]) + told
        added = F.linear(F.relu(hidden), _matrix(self.up.weight), self.up.bias)
        return added.mT.reshape(x.shape) if x.dim() == 4 else added

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by part name, as `from_tensors` takes them and files name them."""
        named = {f"conditioning1.{2 * number}": each for number, each in enumerate(self.stack)}
        named |= dict(zip(_HEADS, (self.down, self.mid, self.up), strict=True))
        return {
            f"{name}.{part}": tensor
            for name, affine in named.items()
            for part, tensor in zip(("weight", "bias"), affine, strict=True)
        }

    def parameters(self) -> dict[str, Tensor]:
        """Those that are trained, by part name: all."""
        return self.tensors()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "LLLite":
        """The same on a device and, where one is named, in a dtype."""

        def moved(affine: Affine) -> Affine:
            return Affine(*(tensor.to(device, dtype or tensor.dtype) for tensor in affine))

        return replace(
            self,
            stack=tuple(map(moved, self.stack)),
            down=moved(self.down),
            mid=moved(self.mid),
            up=moved(self.up),
        )

    @classmethod
    def from_tensors(cls, parts: Mapping[str, Tensor]) -> "LLLite":
        """Build from the parts of one layer. Raises AdapterError naming the part that is wrong."""
        rest = dict(parts)

        def taken(name: str) -> Affine:
            weight, bias = (_floats(f"{name}.{p}", rest.pop(f"{name}.{p}", None)) for p in _PAIR)
            return Affine(weight, bias)

        stack = sorted({match[0] for name in parts if (match := _STACK.match(name))})
        if stack != [f"conditioning1.{2 * number}" for number in range(max(2, len(stack)))]:
            raise AdapterError("an LLLite needs conditioning1.0 and conditioning1.2")
        made = cls(tuple(map(taken, stack)), *map(taken, _HEADS))
        if rest:
            raise AdapterError(f"an LLLite has no part {', '.join(sorted(rest))}")
        return made

    @classmethod
    def fresh(
        cls,
        width: int,
        depth: int,
        *,
        cond_dim: int = 32,
        mlp_dim: int = 64,
        generator: torch.Generator | None = None,
    ) -> "LLLite":
        """A new one for a layer whose input has this width, which adds nothing yet: up is zero.

        depth: 1 to 3, for layers that see 1/8, 1/16 or 1/32 of a picture's sides. The rest is drawn
        as torch draws fresh layers. Raises AdapterError for sizes that cannot be.
        """
        for name, value in (("width", width), ("mlp_dim", mlp_dim), ("cond_dim", cond_dim // 2)):
            positive(name, value)
        if depth not in KERNELS:
            raise AdapterError(f"depth is {depth}: expected {', '.join(map(str, KERNELS))}")

        def affine(*shape: int) -> Affine:
            bias = drawn(shape, generator).flatten(1)[:, 0].clone()  # of the same spread
            return Affine(drawn(shape, generator), bias)

        kernels = KERNELS[depth]
        sizes = [CHANNELS, *[cond_dim // 2] * (len(kernels) - 1), cond_dim]
        stack = tuple(
            affine(sizes[number + 1], sizes[number], kernel, kernel)
            for number, kernel in enumerate(kernels)
        )
        up = Affine(torch.zeros(width, mlp_dim), torch.zeros(width))
        return cls(stack, affine(mlp_dim, width), affine(mlp_dim, cond_dim + mlp_dim), up)


_PAIR = ("weight", "bias")


def _matrix(weight: Tensor) -> Tensor:
    """A linear weight, or a 1x1 convolution's, as [out, in]."""
    return weight.flatten(1)


def _matrix_shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape[:2]) if weight.shape[2:].numel() == 1 else tuple(weight.shape)


def _floats(name: str, part: Tensor | None) -> Tensor:
    if part is None:
        raise AdapterError(f"an LLLite needs {name}")
    dims = (1,) if name.endswith("bias") else (2, 4)
    if part.dim() not in dims or not part.is_floating_point() or not part.numel():
        expected = " or ".join(f"{each}-D" for each in dims)
        raise AdapterError(f"{name} is {said(part)}: expected {expected} floats, not empty")
    return part
