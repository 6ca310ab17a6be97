"""Large products of matrices in fp32 on a CPU, where torch's own way is not the fastest one.

torch multiplies matrices by MKL, which uses half of what AMD's processors can do, and convolves by
oneDNN, which first rearranges the whole weight, for however few pixels. Here oneDNN multiplies on
AMD's processors, and a convolution of few pixels is a product with its patches. Answers differ from
torch's in the rounding of sums alone. Anything else (other devices and types, small matrices, a
torch without oneDNN, products that the user has made less precise) goes torch's way.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Pair = tuple[int, int]

# From here on a call of oneDNN pays: multiplications in a product, and rows of it.
_WORK, _ROWS = 1 << 20, 8
# The same where a node of autograd in Python comes with it.
_WORK_OF_NODE = 1 << 23
# Up to so many pixels it takes longer to rearrange a weight than to convolve with it.
_FEW = 128


# Elements of a matrix worked on at once on a CPU, so that they stay in a core's cache and in memory
# that is used again (2 MB of fp32).
PIECE = 1 << 19


def product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale * a [m, k] @ b [k, n], of any strides."""
    if _pays(a, b, a.numel() * b.shape[1], len(a), _WORK) and not _recorded(a, b):
        done = _multiplied(a, b.t())
        return done if scale == 1 else done.mul_(scale)
    # what it would be added to is not looked at
    return a @ b if scale == 1 else torch.addmm(b[:1], a, b, beta=0, alpha=scale)


def plus_product(
    total: Tensor, up: Tensor, down: Tensor, scale: float, out: Tensor | None = None
) -> Tensor:
    """total [m, n] + scale * up [m, k] @ down [k, n]; into `out` if given, without gradients."""
    work = up.numel() * down.shape[1]
    if out is None or total.dtype != out.dtype or not _pays(up, down, work, len(up), _WORK):
        return torch.addmm(total, up, down, alpha=scale, out=out)
    step, turned = max(1, PIECE // down.shape[1]), down.t()
    for start in range(0, len(up), step):
        some = slice(start, start + step)
        torch.add(total[some], _multiplied(up[some], turned), alpha=scale, out=out[some])
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """x [..., in] -> [..., out] by weight [out, in] and bias [out]; differentiable, once.

    None where torch's own way is to be gone.
    """
    rows = x.numel() // max(1, x.shape[-1])
    if not _pays(x, weight, rows * weight.numel(), rows, _WORK_OF_NODE):
        return None
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> Tensor | None:
    """x [B, in, h, w] by weight [out, in, kh, kw]; differentiable in x, once.

    None where torch's own way is to be gone, as for a weight that asks for gradients.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad) or x.dim() != 4:
        return None
    plain = weight.shape[2:].numel() == stride[0] == stride[1] == 1
    pixels = x[:, 0].numel() // (stride[0] * stride[1])
    if pixels > _FEW and not (plain and len(x) == 1):
        return None
    if pixels * weight.numel() < _WORK_OF_NODE or not _plain(x, weight):
        return None
    y: Tensor = _Convolution.apply(x, weight, bias, stride, padding)
    return y


def _recorded(*tensors: Tensor) -> bool:
    """Whether autograd is to know what is done with them."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def _pays(a: Tensor, b: Tensor, work: int, rows: int, least: int) -> bool:
    """Whether oneDNN is to multiply these, and worth its call."""
    return work >= least and rows >= _ROWS and _plain(a, b) and _onednn()


def _plain(a: Tensor, b: Tensor) -> bool:
    """Whether they lie in memory as fp32 and are to be multiplied as that."""
    return (
        a.dtype == torch.float32 == b.dtype
        and a.device.type == "cpu" == b.device.type
        and type(a) in _PLAIN
        and type(b) in _PLAIN
        and torch.get_float32_matmul_precision() == "highest"
        and not autocasts("cpu")
    )


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    if hasattr(torch, "get_autocast_dtype"):
        return torch.is_autocast_enabled(device)
    # before torch 2.4
    known = {"cpu": "is_autocast_cpu_enabled", "cuda": "is_autocast_enabled"}
    return device in known and bool(getattr(torch, known[device])())


_PLAIN = (Tensor, torch.nn.Parameter)


@cache
def _onednn() -> bool:
    """Whether oneDNN multiplies faster than MKL, and its operation is there for the asking.

    It is one of torch's own compiler's.
    """
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return there and any(maker in _processor() for maker in ("AuthenticAMD", "HygonGenuine"))


def _processor() -> str:
    """What the system says of the processor, its maker among it."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        return told.read_text(errors="replace")[:4096]
    return f"{platform.processor()} {os.environ.get('PROCESSOR_IDENTIFIER', '')}"


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times the transpose of weight [out, in]; no view, so that it may be changed."""
    rows = x.reshape(-1, x.shape[-1])
    if not _onednn():
        return F.linear(rows, weight, bias).resize_(*x.shape[:-1], len(weight))
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # as it lies, oneDNN would take a thousand times as long
    done: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return done.resize_(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    """`linear`, each gradient a product likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _multiplied(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, len(weight))
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = product(rows, weight).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            to_weight = product(rows.t(), x.reshape(len(rows), -1))
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias


class _Convolution(torch.autograd.Function):
    """`convolution`: the weight times each picture's patches, and its transpose on the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.how = x.shape[2:], {"stride": stride, "padding": padding}
        kernel = weight.shape[2:]
        height, width = (
            (side + 2 * pad - length) // step + 1
            for side, pad, length, step in zip(ctx.size, padding, kernel, stride, strict=True)
        )
        ctx.plain = kernel.numel() == stride[0] == stride[1] == 1 and padding == (0, 0)
        patches = x.flatten(2) if ctx.plain else F.unfold(x, tuple(kernel), **ctx.how)
        rows = weight.flatten(1)
        of_each = [_multiplied(rows, each.t()) for each in patches]
        y = of_each[0] if len(x) == 1 else torch.stack(of_each)
        y = y.resize_(len(x), len(weight), height, width)
        return y if bias is None else y.add_(bias.view(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        pixels = grad.flatten(2).transpose(1, 2).reshape(-1, len(weight))
        patches = product(pixels, weight.flatten(1)).view(len(grad), -1, weight[0].numel())
        patches = patches.transpose(1, 2)
        if ctx.plain:
            to_x = patches.reshape(*patches.shape[:2], *ctx.size)
        else:
            to_x = F.fold(patches, tuple(ctx.size), tuple(weight.shape[2:]), **ctx.how)
        return to_x, None, None, None, None
