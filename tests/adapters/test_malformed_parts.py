"""Parts that make no adapter: an AdapterError that names the part, and nothing else."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions_lib.adapters import AdapterError, LoKr, adapter_from, merged
from tests.adapters.cases import CASES, Parts

NAMES = sorted({name for case in CASES.values() for name in case.parts()} | {"diff_b", "lokr_w9"})
TYPES = [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float64]


def mutated(draw: random.Random, parts: Parts) -> None:
    """One thing that may have happened to a file."""
    name = draw.choice(sorted(parts))
    part = parts[name]
    others = sorted(parts)
    what = draw.randrange(11)
    if what == 0:
        del parts[name]
    elif what == 1:
        parts[draw.choice(NAMES)] = torch.ones(
            [draw.randrange(4) for _ in range(draw.randrange(5))]
        )
    elif what == 2:
        part = part.real if part.is_complex() else part
        parts[name] = part.to(draw.choice(TYPES))
    elif what == 3:
        parts[name] = torch.zeros([draw.randrange(5) for _ in range(draw.randrange(6))])
    elif what == 4:
        parts[name] = part.t() if part.dim() < 3 else part.flatten(draw.randrange(part.dim()))
    elif what == 5:
        parts[name] = part[: draw.randrange(len(part) + 1)] if part.dim() else part[None]
    elif what == 6:
        parts[name] = part[None] if draw.random() < 0.5 else part[..., None, None]
    elif what == 7:
        odd = [0, 1, 100, *([0.0, torch.nan, torch.inf] if part.is_floating_point() else [])]
        parts[name] = torch.full(part.shape, draw.choice(odd))
    elif what == 8:
        parts[name] = (-part.to(torch.complex64)).real.to(torch.float32)
    elif what == 9:
        parts[name] = parts[draw.choice(others)]
    else:
        parts.update(CASES[draw.choice(list(CASES))].parts())


def all_of_it(parts: Parts) -> None:
    """Everything that is done with an adapter, where the parts make one."""
    adapter = adapter_from(parts)
    again = adapter_from(adapter.tensors())
    assert type(again) is type(adapter)
    assert again.tensors().keys() == adapter.tensors().keys()
    assert (again.shape, again.rank) == (adapter.shape, adapter.rank)
    shape = [3 if size == -1 else size for size in adapter.shape]
    adapter.bias_delta(None)
    assert adapter.misfit((1000, 7, 5)) is not None or -1 in adapter.shape
    for base in (torch.ones(shape), torch.ones(shape).half()):
        if adapter.misfit(base.shape) is None:
            merged(base, [(adapter, 0.5)], out=torch.empty_like(base))
            assert adapter.delta(base).shape == base.shape


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
@example(73870)  # a change of the bias beside a rotation of inputs that the layer has too few of
def test_nothing_but_an_adapter_error(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(16):
        parts = CASES[draw.choice(list(CASES))].parts()
        for _ in range(draw.randrange(1, 4)):
            if parts:
                mutated(draw, parts)
        try:
            all_of_it(parts)
        except AdapterError as error:
            assert str(error)


ONES: dict[str, tuple[Parts | dict[str, tuple[int, ...]], str]] = {
    "nothing": ({}, "no known algorithm"),
    "unknown": ({"lora_up.weight": (3, 2), "diff_c": (3,)}, "no known algorithm has the parts dif"),
    "loha half": ({"hada_w1_a": (3, 2), "hada_w1_b": (2, 3), "hada_w2_a": (3, 2)}, "no known"),
    "loha ranks": (
        {"hada_w1_a": (3, 2), "hada_w1_b": (2, 3), "hada_w2_a": (3, 4), "hada_w2_b": (2, 3)},
        "ranks do not agree: hada_w1_a",
    ),
    "loha one core": (
        {"hada_w1_a": (2, 3), "hada_w1_b": (2, 3), "hada_w2_a": (2, 3), "hada_w2_b": (2, 3),
         "hada_t1": (2, 2, 3, 3)},
        "hada_t1 and hada_t2 go together",
    ),
    "loha shapes": (
        {"hada_w1_a": (3, 2), "hada_w1_b": (2, 3), "hada_w2_a": (3, 2), "hada_w2_b": (2, 4)},
        "different shapes",
    ),
    "lokr w2": ({"lokr_w1": (3, 3)}, "needs lokr_w2, or lokr_w2_a with lokr_w2_b"),
    "lokr twice": (
        {"lokr_w1": (3, 3), "lokr_w1_a": (3, 1), "lokr_w1_b": (1, 3), "lokr_w2": (2, 2)},
        "needs lokr_w1, or lokr_w1_a",
    ),
    "lokr unknown": ({"lokr_w1": (3, 3), "lokr_w2": (3, 3), "lokr_t1": (3, 3)}, "no part lokr_t1"),
    "glora": (
        {"a1.weight": (5, 2), "a2.weight": (2, 4), "b1.weight": (6, 2), "b2.weight": (2, 5)},
        r"fit neither layout of GLoRA: a1.weight \[5, 2\] float32",
    ),
    "ia3 side": ({"weight": torch.ones(3), "on_input": torch.tensor(2)}, "0 or 1; found 2"),
    "ia3 square": ({"weight": torch.ones(3, 3), "on_input": torch.tensor(1)}, "one number per"),
    "full ints": ({"diff": torch.ones(3, 3, dtype=torch.int32)}, r"diff is \[3, 3\] int32: expec"),
    "full sizes": ({"diff": (3, 3), "diff_b": (4,)}, "different sizes"),
    "two biases": ({"w_norm": (3,), "b_norm": (3,), "diff_b": (3,)}, "the bias is changed twice"),
    "norm": ({"w_norm": (3, 3)}, r"w_norm is \[3, 3\] float32: expected 1-D floats"),
    "oft square": ({"oft_blocks": (2, 3, 4)}, "square blocks"),
    "oft both": ({"oft_blocks": (2, 3, 3), "oft_diag": (2, 3, 3)}, "not both"),
    "oft rescale": ({"oft_blocks": (2, 3, 3), "rescale": (5, 1)}, "rescale of 6 channels"),
    "boft odd": ({"oft_blocks": (1, 2, 3, 3)}, "even size"),
    "boft stages": ({"oft_blocks": (3, 2, 4, 4)}, "a multiple of 4 for 3 stages"),
    "oft in square": ({"oft_in": (2, 3, 4)}, "square blocks"),
    "oft in stages": ({"oft_in": (3, 2, 4, 4)}, "a multiple of 4 for 3 stages"),
    "oft in odd": ({"oft_in": (2, 4, 3, 3)}, "even size"),
    "oft in rescale": ({"oft_in": (2, 3, 3), "rescale": (5, 2)}, "one number per channel"),
    "ia3 bias": (
        {"weight": torch.ones(3), "on_input": torch.tensor(1), "on_bias": torch.tensor(1)},
        "does not change the bias",
    ),
    "dora": ({"diff": (3, 3), "dora_scale": (3, 3)}, r"dora_scale \[3, 3\] float32"),
    "dora alone": ({"dora_scale": (3, 1)}, "no known algorithm"),
    "sparse": ({"diff": (3, 3), "bias_values": (2,)}, "needs bias_indices"),
    "sparse outside": (
        {"diff": (3, 3), "bias_values": (2,), "bias_indices": torch.tensor([[0, 3], [1, 1]]),
         "bias_size": torch.tensor([3, 3])},
        "outside of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONES)
def test_what_is_said(name: str) -> None:
    given, says = ONES[name]
    parts: dict[str, Tensor] = {
        part: value if torch.is_tensor(value) else torch.ones(value)
        for part, value in given.items()
    }
    with pytest.raises(AdapterError, match=says):
        adapter_from(parts)


def test_a_dora_scale_of_another_layer_is_a_misfit() -> None:
    adapter = adapter_from({"diff": torch.ones(3, 2), "dora_scale": torch.ones(5, 1)})
    assert adapter.misfit((3, 2)) == "expected a dora_scale for [3, 2], found [5, 1]"
    with pytest.raises(AdapterError, match="dora_scale"):
        merged(torch.ones(3, 2), [(adapter, 1.0)])


def test_not_a_number_is_let_in_and_stays_where_it_is() -> None:
    parts = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(2, 3)}
    parts["lokr_w1"][0, 1] = torch.nan
    adapter = adapter_from(parts)
    assert isinstance(adapter, LoKr)
    change = adapter.delta(torch.zeros(4, 6))
    assert change.isnan().sum() == 6
    stack = [(adapter, 1.0), (CASES["lora"].adapter(), 0.0)]
    assert merged(torch.zeros(4, 6), stack).isnan().sum() == 6
