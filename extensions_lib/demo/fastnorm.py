"""Group normalisation for channels-last bf16 on the CPU, where torch's backward is slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _GroupNorm(torch.autograd.Function):
    """y = (x − mean) / √(var + eps) · weight + bias by group; each pass is one sweep."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        flat, shape = _rows(x), x.shape
        count = flat.shape[1] * flat.shape[2] // groups
        by_group = (shape[0], groups, -1)
        mean = flat.sum(1, dtype=torch.float32).view(by_group).sum(2, keepdim=True) / count
        square = (flat * flat).sum(1, dtype=torch.float32).view(by_group).sum(2, keepdim=True)
        inv = (square / count - mean * mean).clamp_(min=0).add_(eps).rsqrt_()
        scale = inv * weight.float().view(1, groups, -1)
        shift = bias.float().view(1, groups, -1) - mean * scale
        y = torch.addcmul(_like(shift, flat), flat, _like(scale, flat))
        ctx.save_for_backward(x, weight, mean, inv)
        return _picture(y, shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv = ctx.saved_tensors
        flat, grad = _rows(x), _rows(grads[0])
        by_group = (x.shape[0], mean.shape[1], -1)
        count = flat.shape[1] * flat.shape[2] // mean.shape[1]
        g1 = grad.sum(1, dtype=torch.float32).view(by_group)
        gx = ((grad * flat).sum(1, dtype=torch.float32).view(by_group) - mean * g1) * inv
        w = weight.float().view(1, mean.shape[1], -1)
        s1, s2 = (w * g1).sum(2, keepdim=True), (w * gx).sum(2, keepdim=True)
        c1 = (-inv * inv * s2 / count).expand_as(g1)
        c0 = (-inv * s1 / count).expand_as(g1) - mean * c1
        dx = torch.addcmul(_like(c0, flat), flat, _like(c1, flat))
        dx.addcmul_(grad, _like(inv * w, flat))
        d_weight, d_bias = gx.sum(0).flatten(), g1.sum(0).flatten()
        return _picture(dx, x.shape), d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    """[B, C, *spatial] as [B, positions, C] (a view when channels lie last)."""
    return x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1])


def _picture(rows: Tensor, shape: torch.Size) -> Tensor:
    return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _like(by_group: Tensor, flat: Tensor) -> Tensor:
    return by_group.reshape(flat.shape[0], 1, -1).to(flat.dtype)


def use_fast_norms(model: nn.Module, eps: float | None = None) -> nn.Module:
    """Give every GroupNorm of the model the fast forward, and `eps` if one is named. Returns it."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = module.eps if eps is None else eps
            module.forward = _forward_of(module)  # type: ignore[method-assign]
    return model


def _forward_of(norm: nn.GroupNorm) -> Any:
    def forward(x: Tensor) -> Tensor:
        return _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)

    return forward
