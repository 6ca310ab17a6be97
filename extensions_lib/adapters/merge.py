"""Several networks on one weight, in one computation.

The low-rank factors are put side by side on the rank axis, so that any number of them costs one
`addmm` over the weight: W' = W + [m1 U1 | m2 U2 | ...] @ [D1; D2; ...]. Everything is computed in
fp32 from the clean weight and rounded once.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from extensions_lib.adapters.base import (
    Adapter,
    LowRank,
    full_precision,
    pad_inputs,
    working_dtype,
)

Stack = Sequence[tuple[Adapter, float]]

# Rows of a half-precision weight are widened in pieces that stay in a core's cache (4 MB of fp32).
PIECE = 1 << 20


def merged(
    base: Tensor, stack: Stack, *, out: Tensor | None = None, in_order: bool = False
) -> Tensor:
    """The weight that `stack`, pairs of adapter and multiplier, makes of the clean `base`.

    base [out, in, *k] is only read. Without `out` the result is new and differentiable; with it
    the result is written there (shape of base, no gradients), and no memory of that size is
    allocated for low-rank adapters. The order of the stack does not matter, to the bit; a caller
    whose stack is always in one order of its own may say `in_order` and save the comparison.
    CUDA computes fp32 products in TF32 where the host has allowed that.

    Raises AdapterError where an adapter does not fit; `out` is then untouched.
    """
    stack = [(adapter, multiplier) for adapter, multiplier in stack if multiplier != 0]
    if not in_order and len(stack) > 1:
        stack = canonical_order(stack)
    with full_precision(base.device):
        if out is None:
            factors, dense = _changes(base, stack)
            return _sum(base, factors, dense).to(base.dtype)
        with torch.no_grad():
            factors, dense = _changes(base, stack)
            _sum_into(out, base, factors, dense)
            return out


def canonical_order(stack: Stack) -> list[tuple[Adapter, float]]:
    """The stack in an order that depends on what is in it, not on how it came."""
    cheap: list[tuple[tuple[object, ...], tuple[Adapter, float]]]
    cheap = [(_sample(*entry), entry) for entry in stack]
    if len({key for key, _ in cheap}) < len(cheap):
        cheap = [((*key, _digest(entry[0])), entry) for key, entry in cheap]
    return [entry for _, entry in sorted(cheap, key=lambda pair: pair[0])]


def _changes(base: Tensor, stack: Stack) -> tuple[LowRank | None, list[Tensor]]:
    """All low-rank adapters as one, side by side on the rank axis, and the other changes [out, -1].

    An adapter that does not fit raises here, before anything is written.
    """
    factors, dense = [], []
    for adapter, multiplier in stack:
        each = adapter.low_rank(base.shape)
        if each is not None:
            up, down = each.up.to(base.device), each.down.to(base.device)
            factors.append(LowRank(up, down, each.scale * multiplier))
        else:
            change = adapter.delta(base.to(working_dtype(base))).to(base.device) * multiplier
            if change.numel() != base.numel():
                change = pad_inputs(change, base.shape[1])
            dense.append(_rows(change.reshape(base.shape)))
    if len(factors) < 2:
        return (factors[0] if factors else None), dense
    return _side_by_side(factors), dense


def _side_by_side(factors: Sequence[LowRank]) -> LowRank:
    """Several pairs of factors as one pair; their scales go into its up."""
    downs = [each.down for each in factors]
    if torch.is_grad_enabled():
        return LowRank(
            torch.cat([each.up * each.scale for each in factors], 1), torch.cat(downs), 1
        )
    # The same numbers with one pass over each up instead of two.
    dtype = working_dtype(*downs)
    total = sum(len(down) for down in downs)
    up = factors[0].up.new_empty((len(factors[0].up), total), dtype=dtype)
    start = 0
    for each in factors:
        torch.mul(each.up, each.scale, out=up[:, start : start + len(each.down)])
        start += len(each.down)
    return LowRank(up, torch.cat(downs), 1)


def _sum(base: Tensor, factors: LowRank | None, dense: list[Tensor]) -> Tensor:
    """base + scale * U @ D + the dense changes, in the working precision, of the shape of base."""
    dtype = _precision(base, factors, dense)
    total = _rows(base).to(dtype)
    if factors is not None:
        up, down = factors.up.to(dtype), factors.down.to(dtype)
        total = torch.addmm(total, up, down, alpha=factors.scale)
    for change in dense:
        total = total + change
    # A weight left as it is must not come back as a view of the base.
    return (total if factors or dense else total.clone()).reshape(base.shape)


def _sum_into(out: Tensor, base: Tensor, factors: LowRank | None, dense: list[Tensor]) -> None:
    """As `_sum`, into `out`, with no more scratch than a piece of rows."""
    dtype = _precision(base, factors, dense)
    if factors is None and not dense:
        out.copy_(base)
    elif factors and base.dtype == out.dtype == dtype and out.is_contiguous():
        up, down = factors.up.to(dtype), factors.down.to(dtype)
        torch.addmm(_rows(base), up, down, alpha=factors.scale, out=_rows(out))
        for change in dense:
            _rows(out).add_(change)
    else:
        rows = max(1, PIECE // base[0].numel()) if base.device.type == "cpu" else len(base)
        for start in range(0, len(base), rows):
            piece = slice(start, start + rows)
            part = factors._replace(up=factors.up[piece]) if factors else None
            out[piece] = _sum(base[piece], part, [change[piece] for change in dense])


def _precision(base: Tensor, factors: LowRank | None, dense: list[Tensor]) -> torch.dtype:
    return working_dtype(base, *(factors[:2] if factors else ()), *dense)


def _rows(weight: Tensor) -> Tensor:
    """[out, ...] -> [out, rest]: a view where the weight is contiguous."""
    return weight.reshape(len(weight), -1)


def _sample(adapter: Adapter, multiplier: float) -> tuple[object, ...]:
    """A few bits of its content: enough to tell two trained networks apart."""
    values = []
    for name, tensor in sorted(adapter.tensors().items()):
        flat = tensor.detach().flatten()
        values.append((name, tuple(tensor.shape), *flat[:: max(1, len(flat) // 4)][:5].tolist()))
    return adapter.kind, multiplier, *values


def _digest(adapter: Adapter) -> str:
    """A hash of all its content."""
    digest = hashlib.blake2b()
    for _, tensor in sorted(adapter.tensors().items()):
        digest.update(tensor.detach().double().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
