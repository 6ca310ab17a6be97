"""Many weights at once, as on a GPU: the same as each alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extensions_lib.adapters import Adapter, AdapterError, Merge, merge_each, merged
from extensions_lib.adapters import merge as merge_module
from tests.adapters.cases import CASES, base_for
from tests.adapters.factors import FORMS, random_lora

Stack = list[tuple[Adapter, float]]
HALVES = [torch.float16, torch.bfloat16]
ON = [
    pytest.param("cpu", id="cpu"),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(autouse=True)
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_module, "SLOW_TO_START", ("cpu", "cuda"))


def every_kind(dtype: torch.dtype) -> list[tuple[Tensor, Stack]]:
    """A weight for each case with that case alone, then with LoRAs before and behind it."""
    found: list[tuple[Tensor, Stack]] = []
    for name, case in CASES.items():
        base, adapter = base_for(case, dtype=dtype), case.adapter()
        found.append((base, [(adapter, 0.7)]))
        if base.dim() > 1 and "inpainting" not in name:
            around: Stack = [(random_lora(case.shape, seed=n), 0.3 * n - 0.5) for n in range(3)]
            found.append((base, [around[0], (adapter, -0.4), *around[1:]]))
    for shape, tucker in FORMS.values():
        several = [(random_lora(shape, n + 1, tucker=tucker, seed=n), 0.2 + n) for n in range(5)]
        found.append((torch.randn(shape).to(dtype), [*several]))
    return found


@pytest.mark.parametrize("device", ON)
@pytest.mark.parametrize("room", [1, 500, 1 << 25])
@pytest.mark.parametrize("dtype", HALVES)
def test_as_each_alone(
    dtype: torch.dtype, room: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, however many have room together, and no base is written to."""
    monkeypatch.setattr(merge_module, "TOGETHER", room)
    work = [(base.to(device), stack) for base, stack in every_kind(dtype)]
    clean = [base.clone() for base, _ in work]
    merges = [Merge(torch.full_like(base, torch.nan), base, stack) for base, stack in work]
    merge_each(merges)
    for (out, base, stack), before in zip(merges, clean, strict=True):
        alone = merged(base, stack, out=torch.empty_like(base), in_order=True)
        assert torch.equal(out, alone)
        assert torch.equal(base, before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
def test_a_gpu_as_a_cpu(dtype: torch.dtype) -> None:
    """But for what sums in another order change in the last place of 16 bits."""
    work = every_kind(dtype)
    merges = [Merge(torch.empty_like(b, device="cuda"), b.cuda(), stack) for b, stack in work]
    merge_each(merges)
    for (out, _, _), (base, stack) in zip(merges, work, strict=True):
        wanted = merged(base, stack, in_order=True)
        largest = float(wanted.abs().max())
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out.cpu(), wanted, rtol=eps, atol=1e-5 * largest)


def test_of_many_sorts() -> None:
    """What cannot share a memory with the others comes out right as well."""
    shape = (12, 10, 3, 3)
    lora = random_lora(shape)
    double = random_lora(shape, dtype=torch.float64)
    bases = [
        torch.randn(shape).half(),
        torch.randn(shape),
        torch.randn(shape).bfloat16(),
        torch.randn(shape).half().to(memory_format=torch.channels_last),
        torch.randn(shape).half(),
        torch.randn(shape).double(),
        torch.randn(shape).half(),
    ]
    stacks: list[Stack] = [[(lora, 0.5)] for _ in bases]
    stacks[4] = [(double, 0.5), (lora, 1.0)]
    stacks[6] = [(lora, 0.0)]
    merges = [Merge(torch.empty_like(b), b, s) for b, s in zip(bases, stacks, strict=True)]
    merge_each(merges)
    for out, base, stack in merges:
        assert out.stride() == base.stride()
        alone = torch.empty_like(base)
        assert torch.equal(out, merged(base, stack, out=alone, in_order=True))
    assert torch.equal(merges[6].out, bases[6])
    merge_each([])


def test_a_misfit_is_told() -> None:
    fits, base = random_lora((6, 5)), torch.randn(6, 5).half()
    stacks: list[Stack] = [[(fits, 1.0)], [(random_lora((6, 4)), 1.0)]]
    merges = [Merge(torch.zeros_like(base), base, stack) for stack in stacks]
    with pytest.raises(AdapterError, match=r"expected \[6, 5\], found \[6, 4\]"):
        merge_each(merges)
    assert not merges[1].out.any()
