"""Several networks on one weight: exact, rounded once, in any order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions_lib.adapters import Adapter, AdapterError, LoRA, merged
from extensions_lib.adapters import merge as merge_module
from tests.adapters.factors import FORMS, exact, random_lora

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Doubling(Adapter):
    """A change that is not low-rank and needs the base: W -> 2 W."""

    kind: ClassVar[str] = "doubling"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.made_for = shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self.made_for

    def _add(self, total: Tensor, base: Tensor, multiplier: float, out: Tensor | None) -> Tensor:
        assert base.dtype in (torch.float32, torch.float64)
        return torch.add(total, base, alpha=multiplier, out=out)

    @property
    def row_unit(self) -> int:
        return 1

    def rows(self, start: int, stop: int) -> Doubling:
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {"marker": torch.ones(1)}

    def to(self, device: torch.device | str) -> Doubling:
        return self

    @classmethod
    def from_tensors(cls, parts: Mapping[str, Tensor]) -> Doubling:
        return cls((1, 1))

    @classmethod
    def matches(cls, part_names: Collection[str]) -> bool:
        return "marker" in part_names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("into", [False, True])
def test_within_one_rounding_of_the_formula(form: str, dtype: torch.dtype, into: bool) -> None:
    shape, tucker = FORMS[form]
    base = torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    clean = base.clone()
    stack = [(random_lora(shape, tucker=tucker, seed=n), 0.3 * n - 0.7) for n in range(5)]
    truth = base.double() + sum(exact(lora) * m for lora, m in stack)
    result = merged(base, stack, out=torch.empty_like(base) if into else None)
    assert result.dtype == dtype
    # Half a unit in the last place, and what fp32 sums of some twenty terms of size 1 lose.
    half_unit = torch.finfo(dtype).eps / 2 * truth.abs()
    slack = 2e-6 if dtype == torch.float32 else 4e-6
    assert ((result.double() - truth).abs() <= half_unit + slack).all()
    assert torch.equal(base, clean)


def test_factors_in_half_precision_are_widened_first() -> None:
    lora = random_lora((64, 48), rank=16, alpha=3.0, dtype=torch.float16)
    truth = exact(lora)
    worst = (lora.delta(torch.zeros(64, 48)).double() - truth).abs().max()
    assert worst < 1e-5
    by_half = (lora.up @ lora.down * lora.scale).double()
    assert (by_half - truth).abs().max() > 1e-4


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from([-1.0, 0.0, 0.3, 0.7, 1.0]), st.integers(1, 5)
        ),
        min_size=1,
        max_size=6,
    ).flatmap(lambda items: st.tuples(st.just(items), st.permutations(items))),
    st.sampled_from(list(FORMS)),
    st.sampled_from(DTYPES),
)
def test_order_does_not_show_in_one_bit(
    orders: tuple[list[tuple[int, float, int]], list[tuple[int, float, int]]],
    form: str,
    dtype: torch.dtype,
) -> None:
    shape, tucker = FORMS[form]
    base = torch.randn(shape).to(dtype)

    def stack(items: list[tuple[int, float, int]]) -> list[tuple[Adapter, float]]:
        return [(random_lora(shape, r, tucker=tucker, seed=s), m) for s, m, r in items]

    one, other = merged(base, stack(orders[0])), merged(base, stack(orders[1]))
    assert torch.equal(one, other)


def test_order_does_not_show_where_samples_agree() -> None:
    """Networks alike in all values that are looked at first are told apart by the rest."""
    base = torch.randn(40, 40)
    first = random_lora((40, 40), 8)
    second = LoRA(first.up.clone(), first.down.clone(), None, first.alpha)
    second.down[3, 7] += 0.5
    assert merge_module._sample(first, 1.0) == merge_module._sample(second, 1.0)
    one = merge_module.canonical_order([(first, 1.0), (second, 1.0)])
    other = merge_module.canonical_order([(second, 1.0), (first, 1.0)])
    assert [a is first for a, _ in one] == [a is first for a, _ in other]
    assert torch.equal(merged(base, one), merged(base, other))


def test_in_order_takes_the_order_of_the_caller() -> None:
    base, one, two = torch.randn(40, 40), random_lora((40, 40)), random_lora((40, 40), 8, seed=1)
    orders = [[(one, 0.7), (two, 0.3)], [(two, 0.3), (one, 0.7)]]
    assert torch.equal(*(merged(base, order) for order in orders))
    assert not torch.equal(*(merged(base, order, in_order=True) for order in orders))


@pytest.mark.parametrize("stack", [[], [(random_lora((6, 5)), 0.0)]])
def test_nothing_to_add_is_a_copy_bit_for_bit(stack: list[tuple[Adapter, float]]) -> None:
    for dtype in (*DTYPES, torch.float64):
        base = torch.randn(6, 5).to(dtype)
        copied = merged(base, stack)
        assert torch.equal(copied, base)
        assert copied.data_ptr() != base.data_ptr()
        out = torch.empty_like(base)
        assert merged(base, stack, out=out) is out
        assert torch.equal(out, base)


def test_a_stack_with_a_misfit_leaves_out_as_it_is() -> None:
    base, out = torch.randn(6, 5), torch.full((6, 5), 7.0)
    with pytest.raises(AdapterError, match=r"expected \[6, 5\], found \[6, 4\]"):
        merged(base, [(random_lora((6, 5)), 1.0), (random_lora((6, 4)), 1.0)], out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_changes_of_other_kinds_see_the_clean_weight(into: bool, dtype: torch.dtype) -> None:
    base = torch.randn(6, 5).to(dtype)
    lora = random_lora((6, 5))
    out = torch.empty_like(base) if into else None
    result = merged(base, [(lora, 1.0), (Doubling((6, 5)), 0.5)], out=out)
    truth = base.double() * 1.5 + exact(lora)
    error = (result.double() - truth).abs()
    assert (error <= torch.finfo(dtype).eps * truth.abs() * 0.51 + 1e-6).all()
    alone = merged(base, [(Doubling((6, 5)), 1.0)], out=out)
    assert torch.equal(alone, base * 2)


def test_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.randn(50, 10).half()
    stack: list[tuple[Adapter, float]] = [(random_lora((50, 10)), 0.6), (Doubling((50, 10)), 0.1)]
    whole = merged(base, stack)
    monkeypatch.setattr(merge_module, "PIECE", 70)
    pieces = merged(base, stack, out=torch.empty_like(base))
    torch.testing.assert_close(pieces, whole, rtol=0.002, atol=1e-3)
    assert (pieces != whole).sum() <= 2


def test_any_memory_layout() -> None:
    base = torch.randn(12, 10, 3, 3)
    stack = [(random_lora((12, 10, 3, 3)), 0.9)]
    last = base.to(memory_format=torch.channels_last)
    out = merged(last, stack, out=torch.empty_like(last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, merged(base, stack))
    rows = torch.randn(10, 12)
    turned = torch.empty_like(rows)
    linear = [(random_lora((12, 10)), 0.9)]
    merged(rows.t(), linear, out=turned.t())
    torch.testing.assert_close(turned.t(), merged(rows.t().contiguous(), linear))


def test_autocast_does_not_round_the_change() -> None:
    base, stack = torch.randn(64, 64), [(random_lora((64, 64), 16, seed=s), 1.0) for s in (0, 1)]
    tucker = random_lora((12, 10, 3, 3), tucker=True)
    kernel = torch.zeros(12, 10, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = merged(base, stack)
        into = merged(base, stack, out=torch.empty_like(base))
        change = tucker.delta(kernel)
    assert torch.equal(inside, merged(base, stack))
    assert torch.equal(into, inside)
    assert torch.equal(change, tucker.delta(kernel))


def test_the_base_gets_gradients_and_out_does_not() -> None:
    base = torch.randn(6, 5, requires_grad=True)
    lora = random_lora((6, 5))
    lora.up.requires_grad_()
    merged(base, [(lora, 0.5)]).sum().backward()
    assert torch.equal(base.grad, torch.ones(6, 5))
    assert lora.up.grad is not None and lora.up.grad.any()
    assert not merged(base, [(lora, 0.5)], out=torch.empty(6, 5)).requires_grad
