"""Several networks on one weight, in one computation; and many weights, each with its networks.

The low-rank factors are put side by side on the rank axis, so that any number of them costs one
`addmm` over the weight: W' = W + [m1 U1 | m2 U2 | ...] @ [D1; D2; ...]; the other kinds add theirs
to that in turn. Everything is computed in fp32 from the clean weight and rounded once.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from extensions_lib.adapters.base import (
    Adapter,
    LowRank,
    as_rows,
    full_precision,
    working_dtype,
)
from extensions_lib.adapters.products import PIECE, plus_product

Stack = Sequence[tuple[Adapter, float]]

# Where many small computations take longer to start than to do, and how many elements of weights
# go through fp32 together there (128 MB).
SLOW_TO_START = ("cuda",)
TOGETHER = 1 << 25


class Merge(NamedTuple):
    """A weight to be made: `out` becomes what `stack` makes of the clean `base`."""

    out: Tensor
    base: Tensor
    stack: Stack


def merged(
    base: Tensor, stack: Stack, *, out: Tensor | None = None, in_order: bool = False
) -> Tensor:
    """The weight that `stack`, pairs of adapter and multiplier, makes of the clean `base`.

    base [out, in, *k] or [n] is only read, and every change is computed from it: the order of the
    stack does not matter, to the bit. A caller whose stack is always in one order of its own may
    say `in_order` and save the comparison. Without `out` the result is new and differentiable; with
    it the result is written there (shape of base, no gradients), in pieces, with no more scratch
    than the kinds need for a piece. CUDA computes fp32 products in TF32 where the host has allowed
    that.

    Raises AdapterError where an adapter does not fit; `out` is then untouched.
    """
    stack = _counting(stack)
    if not in_order and len(stack) > 1:
        stack = canonical_order(stack)
    with full_precision(base.device):
        if out is None:
            changes = _changes(base, stack)
            return _summed(_working(base, changes), changes).reshape(base.shape).to(base.dtype)
        with torch.no_grad():
            _sum_into(out, base, _changes(base, stack))
            return out


def better_together(weight: Tensor) -> bool:
    """Whether `merge_each` has weights like this share the passes to fp32 and back."""
    halves = weight.dtype in (torch.float16, torch.bfloat16)
    return halves and weight.device.type in SLOW_TO_START and weight.is_contiguous()


def merge_each(merges: Sequence[Merge]) -> None:
    """`merged(base, stack, out=out, in_order=True)` of each, to the bit.

    On a GPU it takes as long to start a computation as to do it on a small layer. There, weights of
    16 bits go to fp32 and back in one go, as many as TOGETHER has room for (one, if larger).
    Raises AdapterError where one does not fit; some may be done by then.
    """
    some: list[Merge] = []
    size = 0
    for each in merges:
        joins = better_together(each.base) and better_together(each.out)
        if not joins or each.base.dtype != each.out.dtype:
            merged(each.base, each.stack, out=each.out, in_order=True)
            continue
        alike = some and _sort(each.base) == _sort(some[0].base)
        if some and not (alike and size + each.base.numel() <= TOGETHER):
            _merge_together(some)
            some, size = [], 0
        some.append(each)
        size += each.base.numel()
    if some:
        _merge_together(some)


def _sort(weight: Tensor) -> tuple[torch.device, torch.dtype]:
    return weight.device, weight.dtype


@torch.no_grad()
def _merge_together(merges: Sequence[Merge]) -> None:
    """Weights in one memory of fp32, where each is computed; with doubles for factors, alone."""
    device = merges[0].base.device
    with full_precision(device):
        gathered = [(each, _gathered(each.base, _counting(each.stack))) for each in merges]
        ready = [(each, found) for each, found in gathered if found.dtype == torch.float32]
        for each, found in gathered:
            if found.dtype != torch.float32:
                _sum_into(each.out, each.base, _joined(found))
        if not ready:
            return
        bases, outs = [each.base for each, _ in ready], [each.out for each, _ in ready]
        clean = _room(bases, device)
        torch._foreach_copy_(clean, bases)
        dense = [base for base, (_, found) in zip(clean, ready, strict=True) if found.dense]
        # What is no product of thin factors may need the clean weight to the end.
        totals = iter(_room(dense, device) if dense else ())
        pairs = zip(clean, ready, strict=True)
        sums = [next(totals) if found.dense else base for base, (_, found) in pairs]
        changed = _joined_each([found for _, found in ready])
        for base, total, changes in zip(clean, sums, changed, strict=True):
            if total is base and changes.factors is not None:
                rows = as_rows(base)
                plus_product(rows, *changes.factors, rows)
            elif total is not base:
                _summed(base, changes, total)
        torch._foreach_copy_(outs, sums)


def _room(like: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """fp32 tensors of these shapes, in one memory."""
    sizes = [each.numel() for each in like]
    memory = torch.empty(sum(sizes), dtype=torch.float32, device=device)
    parts = zip(memory.split(sizes), like, strict=True)
    return [part.view(each.shape) for part, each in parts]


def _counting(stack: Stack) -> list[tuple[Adapter, float]]:
    """Those that change the weight."""
    return [each for each in stack if each[1] != 0 and each[0].changes_weight]


def canonical_order(stack: Stack) -> list[tuple[Adapter, float]]:
    """The stack in an order that depends on what is in it, not on how it came."""
    cheap: list[tuple[tuple[object, ...], tuple[Adapter, float]]]
    cheap = [(_sample(*entry), entry) for entry in stack]
    if len({key for key, _ in cheap}) < len(cheap):
        cheap = [((*key, _digest(entry[0])), entry) for key, entry in cheap]
    return [entry for _, entry in sorted(cheap, key=lambda pair: pair[0])]


class Changes(NamedTuple):
    """All low-rank adapters as one pair of factors, the others plain, in the dtype of the sum."""

    factors: LowRank | None
    dense: Sequence[tuple[Adapter, float]]
    dtype: torch.dtype


class Gathered(NamedTuple):
    """Low-rank adapters as their factors, the others as they are, and the dtype of their sum."""

    factors: Sequence[LowRank]
    dense: Sequence[tuple[Adapter, float]]
    dtype: torch.dtype


def _gathered(base: Tensor, stack: Stack) -> Gathered:
    """What is to be added; an adapter that does not fit raises here, before anything is written."""
    factors: list[LowRank] = []
    dense: list[tuple[Adapter, float]] = []
    for adapter, multiplier in stack:
        each = adapter.low_rank(base.shape)
        if each is not None:
            up, down = each.up.to(base.device), each.down.to(base.device)
            factors.append(LowRank(up, down, each.scale * multiplier))
        else:
            adapter.check_fit(base.shape)
            dense.append((adapter.to(base.device), multiplier))
    held = [tensor for adapter, _ in dense for tensor in adapter.parameters().values()]
    return Gathered(factors, dense, working_dtype(base, *held, *(each.down for each in factors)))


def _joined(gathered: Gathered) -> Changes:
    """The factors as one pair, the others plain, in the dtype of the sum."""
    factors, dense, dtype = gathered
    one = factors[0] if len(factors) == 1 else _side_by_side(factors) if factors else None
    if one is not None:
        one = LowRank(one.up.to(dtype), one.down.to(dtype), one.scale)
    return Changes(one, [(adapter.plain(dtype), m) for adapter, m in dense], dtype)


def _joined_each(every: Sequence[Gathered]) -> Iterator[Changes]:
    """`_joined` of each, all of fp32; what factors are multiplied by is done in one go."""
    several = [each for each in every if len(each.factors) > 1]
    ups = [pair.up for each in several for pair in each.factors]
    scales = [pair.scale for each in several for pair in each.factors]
    scaled = iter(torch._foreach_mul(ups, scales) if ups else ())
    for each in every:
        if len(each.factors) > 1:
            pairs = [(next(scaled), pair.down) for pair in each.factors]
            one = LowRank(torch.cat([u for u, _ in pairs], 1), torch.cat([d for _, d in pairs]), 1)
            each = each._replace(factors=[one])
        yield _joined(each)


def _changes(base: Tensor, stack: Stack) -> Changes:
    """What is to be added, as it is computed with."""
    return _joined(_gathered(base, stack))


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


def _working(base: Tensor, changes: Changes) -> Tensor:
    """The base as the changes are computed on it."""
    return base.to(changes.dtype).contiguous()


def _summed(base: Tensor, changes: Changes, out: Tensor | None = None) -> Tensor:
    """base + all changes, of the shape of base, which is as `_working` makes it; out likewise."""
    total = base
    if changes.factors is not None:
        up, down, scale = changes.factors
        total = plus_product(as_rows(base), up, down, scale, as_rows(out)).view(base.shape)
    for adapter, multiplier in changes.dense:
        total = adapter.added(total, base, multiplier, out=out)
    # A weight left as it is must not come back as the base itself.
    return total.clone() if total is base else total


def _sum_into(out: Tensor, base: Tensor, changes: Changes) -> None:
    """As `_summed`, into `out` of any layout and dtype."""
    factors, dense, dtype = changes
    if factors is None and not dense:
        out.copy_(base)
        return
    direct = base.dtype == out.dtype == dtype and base.is_contiguous() and out.is_contiguous()
    in_one = direct and not any(adapter.needs_scratch for adapter, _ in dense)
    step = len(base) if in_one else _piece(base, dense)
    # Fresh memory for every piece would cost more than the sums in it.
    room = None
    if not direct:
        room = base.new_empty((2, min(step, len(base)), *base.shape[1:]), dtype=dtype)
    for start in range(0, len(base), step):
        stop = min(start + step, len(base))
        part = changes
        if step < len(base):
            part = Changes(
                factors and factors._replace(up=factors.up[start:stop]),
                [(adapter.rows(start, stop), multiplier) for adapter, multiplier in dense],
                dtype,
            )
        if room is None:
            _summed(base[start:stop], part, out[start:stop])
        else:
            clean, total = room[:, : stop - start]
            out[start:stop] = _summed(clean.copy_(base[start:stop]), part, total)


def _piece(base: Tensor, dense: Stack) -> int:
    """How many rows at once: as many as PIECE has room for, in units that all can be cut to."""
    units = [adapter.row_unit for adapter, _ in dense]
    unit = math.lcm(*(each for each in units if each is not None))
    if base.device.type != "cpu" or None in units or len(base) % unit:
        return len(base)
    return max(unit, PIECE // base[0].numel() // unit * unit)


def _sample(adapter: Adapter, multiplier: float) -> tuple[object, ...]:
    """A few bits of its content: enough to tell two trained networks apart."""
    values = []
    for name, tensor in sorted(adapter.tensors().items()):
        flat = tensor.detach().flatten()
        few = flat[:: max(1, len(flat) // 4)][:5].double()
        # As bytes, which have an order among them even where a value is NaN.
        values.append((name, tuple(tensor.shape), few.cpu().numpy().tobytes()))
    return adapter.kind, multiplier, *values


def _digest(adapter: Adapter) -> str:
    """A hash of all its content."""
    digest = hashlib.blake2b()
    for _, tensor in sorted(adapter.tensors().items()):
        digest.update(tensor.detach().double().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
