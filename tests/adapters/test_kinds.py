"""Every kind in every form: exact by its formula, differentiable, read back as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.adapters import (
    BOFT,
    IA3,
    OFT,
    Adapter,
    AdapterError,
    DoRA,
    Full,
    GLoRA,
    LoHa,
    LoKr,
    LoRA,
    Norm,
    adapter_from,
    merged,
)
from extensions_lib.adapters import merge as merge_module
from extensions_lib.adapters.lokr import factors_of
from tests.adapters.cases import CASES, base_for, relative

MULTIPLIERS = [0.3, 1.0, -0.7]


@pytest.mark.parametrize("name", CASES)
def test_the_change_is_the_formula(name: str) -> None:
    case = CASES[name]
    parts, base = case.parts(), base_for(case)
    adapter, exact = adapter_from(parts), case.exact(parts, base)
    change = adapter.delta(base)
    assert (change.shape, change.dtype) == (base.shape, torch.float32)
    assert relative(change, exact) < 1e-5
    assert relative(adapter_from(case.parts(dtype=torch.float64)).delta(base.double()),
                    case.exact(case.parts(dtype=torch.float64), base)) < 1e-12  # fmt: skip
    for multiplier in MULTIPLIERS:
        truth = base.double() + multiplier * exact
        for out in (None, torch.full_like(base, torch.nan)):
            assert relative(merged(base, [(adapter, multiplier)], out=out), truth) < 1e-6


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_once(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    parts, base = case.parts(dtype=torch.float16), base_for(case, dtype=dtype)
    truth = base.double() + 0.7 * case.exact(parts, base)
    adapter = adapter_from(parts)
    for out in (None, torch.empty_like(base)):
        error = (merged(base, [(adapter, 0.7)], out=out).double() - truth).abs()
        half_unit = torch.finfo(dtype).eps / 2 * truth.abs()
        assert (error <= half_unit * 1.001 + 1e-5 * truth.abs().max()).all()


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    case = CASES[name]
    parts = case.parts(dtype=torch.float64)
    base = base_for(case, dtype=torch.float64)
    trained = [part for part in adapter_from(parts).parameters() if part in parts]
    assert trained == list(adapter_from(parts).parameters())
    trained = [part for part in trained if part not in ("diff_b", "b_norm")]

    def change(clean: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        adapter = adapter_from({**parts, **dict(zip(trained, tensors, strict=True))})
        # A few sums of all elements: as telling as the elements, and quick.
        result = merged(clean, [(adapter, 0.6)]).flatten()
        mix = torch.randn(3, len(result), generator=torch.Generator().manual_seed(1)).double()
        return mix @ result

    inputs = [base.requires_grad_(), *(parts[name].clone().requires_grad_() for name in trained)]
    assert torch.autograd.gradcheck(change, inputs, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_come_back_as_they_were(name: str, dtype: torch.dtype) -> None:
    parts = CASES[name].parts(dtype=dtype)
    adapter = adapter_from(parts)
    found = adapter.tensors()
    assert found.keys() == parts.keys()
    for part in parts:
        assert torch.equal(found[part].double(), parts[part].double())
        if parts[part].dim():
            assert (found[part].dtype, found[part].shape) == (parts[part].dtype, parts[part].shape)
    for part, tensor in adapter.parameters().items():
        assert tensor is parts[part]
    again = adapter_from(found)
    assert type(again) is type(adapter)
    assert (again.kind, again.rank, again.shape) == (adapter.kind, adapter.rank, adapter.shape)


@pytest.mark.parametrize("name", CASES)
def test_to_moves_all_of_it(name: str) -> None:
    adapter = CASES[name].adapter()
    assert adapter.to("cpu") is adapter
    if "bias_values" in adapter.tensors():
        return  # its positions are checked, which nothing on "meta" can be
    moved = adapter.to("meta").parameters()
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_the_same_on_a_gpu(name: str) -> None:
    case = CASES[name]
    adapter, base = case.adapter(), base_for(case)
    expected, there = merged(base, [(adapter, 0.7)]), base.to("cuda")
    assert relative(merged(there, [(adapter, 0.7)]).cpu(), expected) < 1e-5
    out = merged(there, [(adapter.to("cuda"), 0.7)], out=torch.empty_like(there))
    assert relative(out.cpu(), expected) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_a_weight_of_another_size_is_refused(name: str) -> None:
    case, adapter = CASES[name], CASES[name].adapter()
    assert adapter.misfit(case.shape) is None
    turns_inputs = "oft in" in name
    knows_outputs = not name.startswith(("ia3 in", "dora in oft in")) and (
        not turns_inputs or "rescale" in case.sizes or name.startswith("dora")
    )
    wrong = [(case.shape[0] + 1, *case.shape[1:])] if knows_outputs else []
    knows_inputs = turns_inputs or not name.startswith(
        (
            "ia3 out",
            "oft",
            "diag-oft",
            "boft",
            "norm",
            "dora out i",
            "dora out oft",
            "dora out boft",
        )
    )
    if knows_inputs:
        wrong.append((case.shape[0], case.shape[1] + 1, *case.shape[2:]))
    for shape in wrong:
        assert "expected" in (adapter.misfit(shape) or "")
        with pytest.raises(AdapterError, match="expected"):
            adapter.delta(torch.ones(shape))
        out = torch.full(shape, 7.0)
        with pytest.raises(AdapterError, match="expected"):
            merged(torch.ones(shape), [(adapter, 1.0)], out=out)
        assert (out == 7).all()


@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name].shape) == 2])
def test_linear_fits_a_1x1_convolution(name: str) -> None:
    case, adapter = CASES[name], CASES[name].adapter()
    base = base_for(case)
    assert relative(adapter.delta(base[..., None, None])[..., 0, 0], adapter.delta(base)) < 1e-6


@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name].shape) == 4])
def test_any_layout_of_memory(name: str) -> None:
    case, adapter = CASES[name], CASES[name].adapter()
    base = base_for(case)
    last = base.to(memory_format=torch.channels_last)
    expected = merged(base, [(adapter, 0.7)])
    assert relative(merged(last, [(adapter, 0.7)]), expected) < 1e-6
    out = merged(last, [(adapter, 0.7)], out=torch.empty_like(last))
    assert relative(out, expected) < 1e-6


INPAINTING = {
    "lora": {"lora_up.weight": (8, 2, 1, 1), "lora_down.weight": (2, 4, 3, 3)},
    "loha": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 36), "hada_w2_a": (8, 2), "hada_w2_b": (2, 36)},
    "loha tucker": {
        "hada_w1_a": (2, 8), "hada_w1_b": (2, 4), "hada_t1": (2, 2, 3, 3),
        "hada_w2_a": (2, 8), "hada_w2_b": (2, 4), "hada_t2": (2, 2, 3, 3),
    },
    "lokr": {"lokr_w1": (2, 2), "lokr_w2": (4, 2, 3, 3)},
    "lokr flat": {"lokr_w1": (2, 2), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 18)},
    "glora": {
        "a1.weight": (4, 2, 1, 1), "a2.weight": (2, 4, 1, 1),
        "b1.weight": (8, 2, 1, 1), "b2.weight": (2, 4, 3, 3),
    },
    "full": {"diff": (8, 4, 3, 3)},
    "ia3": {"weight": (1, 4, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", INPAINTING)
@pytest.mark.parametrize("lengths", [None, (8, 1, 1, 1), (1, 4, 1, 1)])
def test_inpainting_leaves_the_five_new_channels_alone(
    name: str, lengths: tuple[int, ...] | None
) -> None:
    parts = {part: torch.randn(size) for part, size in INPAINTING[name].items()}
    if name == "ia3":
        parts["on_input"] = torch.tensor(1)
    if lengths is not None:
        parts["dora_scale"] = 1 + torch.rand(lengths)
    adapter = adapter_from(parts)
    base = torch.randn(8, 9, 3, 3)
    change = adapter.delta(base)
    assert relative(change[:, :4], adapter.delta(base[:, :4])) < 1e-6
    assert not change[:, 4:].any()
    for out in (None, torch.empty_like(base), torch.empty_like(base).half()):
        result = merged(base, [(adapter, 0.5), (adapter, 1.0)], out=out)
        assert relative(result, base + 1.5 * change) < (1e-6 if out is None else 1e-3)
        assert torch.equal(result[:, 4:].float(), base[:, 4:].to(result.dtype).float())


SAME_SHAPE: dict[tuple[int, ...], list[str]] = {}
for _name, _case in CASES.items():
    SAME_SHAPE.setdefault(_case.shape, []).append(_name)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[list[tuple[str, int, float]], list[tuple[str, int, float]]]:
    shape = draw(st.sampled_from(list(SAME_SHAPE)))
    one = st.tuples(
        st.sampled_from(SAME_SHAPE[shape]), st.integers(0, 2), st.sampled_from([-0.7, 0.3, 1.0])
    )
    stack = draw(st.lists(one, min_size=1, max_size=5))
    return stack, draw(st.permutations(stack))


@settings(max_examples=60, deadline=None)
@given(stacks(), st.sampled_from([torch.float32, torch.float16]), st.integers(0, 2))
def test_a_stack_of_kinds_in_any_order_and_in_pieces(
    orders: tuple[list[tuple[str, int, float]], list[tuple[str, int, float]]],
    dtype: torch.dtype,
    small: int,
) -> None:
    """Each change is of the clean weight, they add up, and the order does not show in one bit."""
    stack, other = (
        [(CASES[name].adapter(seed), multiplier) for name, seed, multiplier in order]
        for order in orders
    )
    base = base_for(CASES[orders[0][0][0]], dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_module, "PIECE", (40, 400, 1 << 20)[small])
        first = merged(base, stack, out=torch.empty_like(base))
        second = merged(base, other, out=torch.empty_like(base))
    assert torch.equal(first, second)
    exact = [
        multiplier * CASES[name].exact(CASES[name].parts(seed), base)
        for name, seed, multiplier in orders[0]
    ]
    truth = base.double() + sum(exact)
    slack = 1e-6 * sum(float(each.abs().max()) for each in (base.double(), *exact))
    half_unit = torch.finfo(dtype).eps / 2 * truth.abs()
    assert ((first.double() - truth).abs() <= half_unit * 1.001 + 10 * slack).all()
    assert torch.equal(merged(base, stack), merged(base, other))


FRESH = {
    "lora": lambda shape: LoRA.fresh(shape, 3, 1.0, tucker=True),
    "loha": lambda shape: LoHa.fresh(shape, 3, 1.0),
    "loha tucker": lambda shape: LoHa.fresh(shape, 3, 1.0, tucker=True),
    "lokr": lambda shape: LoKr.fresh(shape, 2, 1.0, factor=2),
    "lokr both": lambda shape: LoKr.fresh(shape, 1, 1.0, factor=4, decompose_both=True),
    "lokr full": lambda shape: LoKr.fresh(shape, 2, 1.0, full_matrix=True),
    "lokr tucker": lambda shape: LoKr.fresh(shape, 1, 1.0, factor=2, tucker=True),
    "glora": lambda shape: GLoRA.fresh(shape, 3, 1.0),
    "ia3": lambda shape: IA3.fresh(shape),
    "ia3 in": lambda shape: IA3.fresh(shape, on_input=True),
    "full": lambda shape: Full.fresh(shape, bias=True),
    "oft": lambda shape: OFT.fresh(shape, 4, 1e-3),
    "diag-oft": lambda shape: OFT.fresh(shape, 4, rank_is_size=True, rescale=True),
    "boft": lambda shape: BOFT.fresh(shape, 4, rescale=True),
}


@pytest.mark.parametrize("name", FRESH)
@pytest.mark.parametrize("shape", [(16, 12), (16, 12, 1, 1), (16, 12, 3, 3)])
@pytest.mark.parametrize("lengths", [None, False, True])
def test_a_fresh_one_changes_nothing_and_can_be_trained(
    name: str, shape: tuple[int, ...], lengths: bool | None
) -> None:
    base = torch.randn(shape)
    fresh: Adapter = FRESH[name](shape)
    if lengths is not None:
        fresh = DoRA.fresh(fresh, base, on_input=lengths)
    assert fresh.misfit(shape) is None
    assert fresh.delta(base).abs().max() < 1e-6
    for tensor in fresh.parameters().values():
        tensor.requires_grad_()
    (merged(base, [(fresh, 1.0)]) * torch.randn(shape)).sum().backward()
    moved = [t for t in fresh.parameters().values() if t.grad is not None and t.grad.any()]
    assert moved
    again = adapter_from(fresh.tensors())
    assert type(again) is type(fresh)
    assert torch.equal(again.delta(base), fresh.delta(base))


def test_a_fresh_norm() -> None:
    fresh = Norm.fresh((16,), bias=True)
    assert not fresh.delta(torch.ones(16)).any()
    assert fresh.tensors().keys() == {"w_norm", "b_norm"}


@pytest.mark.parametrize("rank", [0, -2])
@pytest.mark.parametrize("kind", [LoRA, LoHa, LoKr, GLoRA, OFT, BOFT])
def test_no_ranks_below_one(kind: type, rank: int) -> None:
    with pytest.raises(AdapterError, match="expected at least 1"):
        kind.fresh((16, 12), rank)


def test_blocks_that_do_not_divide() -> None:
    with pytest.raises(AdapterError, match="5 blocks do not divide 16"):
        OFT.fresh((16, 12), 5)
    with pytest.raises(AdapterError, match="no butterfly"):
        BOFT.fresh((15, 12), 4)


@pytest.mark.parametrize("size", [127, 128, 250, 320, 360, 512, 640, 1024, 1280, 10240])
@pytest.mark.parametrize("factor", [-1, 2, 4, 6, 8, 16, 50])
def test_sizes_are_split_as_lycoris_does(size: int, factor: int) -> None:
    functional = pytest.importorskip("lycoris.functional.general")
    assert factors_of(size, factor) == functional.factorization(size, factor)


def test_a_change_of_the_bias() -> None:
    weight = {"diff": torch.randn(4, 3)}
    both = adapter_from({**weight, "diff_b": torch.randn(4).half()})
    assert both.changes_weight and both.changes_bias
    change = both.bias_delta(torch.zeros(4, dtype=torch.float16))
    assert change is not None and change.dtype == torch.float32
    assert both.bias_delta(None) is not None
    with pytest.raises(AdapterError, match="expected \\[5\\], found \\[4\\]"):
        both.bias_delta(torch.zeros(5))
    only = adapter_from({"diff_b": torch.randn(4)})
    assert only.changes_bias and not only.changes_weight
    base = torch.randn(4, 3)
    assert only.misfit((4, 3, 3, 3)) is None
    assert only.misfit((5, 3)) is not None
    assert not only.delta(base).any()
    assert torch.equal(merged(base, [(only, 1.0)]), base)
    none = adapter_from(weight)
    assert not none.changes_bias and none.bias_delta(torch.zeros(4)) is None
    norm = adapter_from({"w_norm": torch.ones(4), "b_norm": torch.full((4,), 2.0)})
    assert torch.equal(norm.bias_delta(torch.zeros(4)), torch.full((4,), 2.0))


def test_a_bias_beside_another_kind() -> None:
    parts = {**CASES["dora out lora"].parts(), "diff_b": torch.ones(16)}
    adapter = adapter_from(parts)
    assert adapter.kind == "lora" and adapter.rank == 3
    assert torch.equal(adapter.bias_delta(torch.zeros(16)), torch.ones(16))
    base = base_for(CASES["lora"])
    plain = CASES["dora out lora"].adapter()
    assert torch.equal(merged(base, [(adapter, 0.3)]), merged(base, [(plain, 0.3)]))
    assert adapter.tensors().keys() == parts.keys()


def test_dyn_goes_through_to_the_lora() -> None:
    case = CASES["dora out lora"]
    base, parts = base_for(case), case.parts()
    cut = adapter_from(parts).first_ranks(2)
    assert cut.rank == 2
    parts["lora_up.weight"] = parts["lora_up.weight"].clone()
    parts["lora_up.weight"][:, 2:] = 0
    assert relative(cut.delta(base), case.exact(parts, base)) < 1e-5
    loha = CASES["loha"].adapter()
    assert loha.first_ranks(1) is loha


def test_a_channel_that_is_zero_stays_zero_in_dora() -> None:
    parts = CASES["dora out lora"].parts()
    parts["lora_up.weight"][3] = 0
    base = base_for(CASES["lora"])
    base[3] = 0
    result = merged(base, [(adapter_from(parts), 1.0)])
    assert not result[3].any()
    assert result.isfinite().all()


def test_peft_lengths_of_a_convolution_are_those_of_the_outputs() -> None:
    case = CASES["dora out lora 3x3"]
    base, parts = base_for(case), case.parts()
    exact = case.exact(parts, base)
    for shape in ((16,), (1, 16, 1, 1)):
        parts["dora_scale"] = parts["dora_scale"].reshape(shape)
        adapter = adapter_from(parts)
        assert relative(adapter.delta(base), exact) < 1e-5
        out = merged(base, [(adapter, 0.3)], out=torch.empty_like(base))
        assert relative(out, base + 0.3 * exact) < 1e-5


def test_layouts_of_glora_are_told_apart() -> None:
    for layout, swapped in ((CASES["glora"], False), (CASES["glora old"], True)):
        adapter = layout.adapter()
        assert isinstance(adapter, GLoRA)
        assert (adapter.swapped, adapter.shape, adapter.rank) == (swapped, (16, 12), 3)
    square = {f"{name}.weight": torch.randn(3, 12) for name in ("a1", "b1")}
    square |= {f"{name}.weight": torch.randn(12, 3) for name in ("a2", "b2")}
    assert adapter_from(square).shape == (12, 12)


def test_a_size_that_is_not_told_is_called_any() -> None:
    problem = CASES["ia3 in"].adapter().misfit((3, 4, 1, 1))
    assert problem == "expected [3, 4, 1, 1], found [any, 12, any]"


def test_small_turns_keep_their_digits() -> None:
    case = CASES["oft"]
    parts, base = case.parts(), base_for(case)
    parts["oft_blocks"] *= 1e-4
    assert relative(adapter_from(parts).delta(base), case.exact(parts, base)) < 1e-5
