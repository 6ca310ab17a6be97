"""What a tag can say beyond two weights: over the steps, in the hires pass, by block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions_lib.prompts.blocks import LISTS, PRESETS, Blocks, read_blocks, read_sides
from extensions_lib.prompts.curves import Curve, read_curve
from extensions_lib.prompts.tags import NetworkRequest, network_requests


def the(tag: str) -> NetworkRequest:
    _, (request,), problems = network_requests(tag)
    assert problems == []
    return request


def over(tag: str, steps: int, *, hires: bool = False) -> list[float]:
    """The UNet's weight in each step."""
    request = the(tag)
    assert request.plan is not None
    weights = [request.plan.weights(step, steps, hires=hires) for step in range(steps)]
    assert len({te for te, _ in weights}) == 1  # the text encoder has run before
    return [round(unet, 6) for _, unet in weights]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:a:0@0,1@1>", [0, 0.25, 0.5, 0.75, 1]),
        ("<lora:a:0,1>", [0, 0.25, 0.5, 0.75, 1]),
        ("<lora:a:1~0.5;0~1>", [1, 1, 1, 0.5, 0]),
        ("<lora:a:1@1,0@3>", [1, 1, 0.5, 0, 0]),  # above 1: numbers of steps
        ("<lora:a:1:0@0,1@1>", [0, 0.25, 0.5, 0.75, 1]),
        ("<lora:a:unet=0@0,1@1>", [0, 0.25, 0.5, 0.75, 1]),
        ("<lora:a:0.5:start=2>", [0, 0, 0.5, 0.5, 0.5]),
        ("<lora:a:0.5:stop=2>", [0.5, 0.5, 0, 0, 0]),
        ("<lora:a:0.5:step=1-3>", [0, 0.5, 0.5, 0, 0]),
        ("<lora:a:0.5:start=0.4>", [0, 0, 0.5, 0.5, 0.5]),
        ("<lllite:a:0@0,1@1>", [0, 0.25, 0.5, 0.75, 1]),
        ("<lllite:a:0.5:start=0.4:stop=4>", [0, 0, 0.5, 0.5, 0]),
    ],
)
def test_weights_over_the_steps(tag: str, expected: list[float]) -> None:
    assert over(tag, 5) == expected
    plan = the(tag).plan
    assert plan is not None and plan.changing
    assert over(tag, 5, hires=True) == expected


def test_the_first_step_is_the_requests_own_weight() -> None:
    request = the("<lora:a:0.5@0,1@1>")
    assert (request.te, request.unet) == (0.5, 0.5)
    request = the("<lora:a:0.7:start=3>")
    assert (request.te, request.unet) == (0, 0)


def test_one_weight_needs_no_plan() -> None:
    for tag in ("<lora:a>", "<lora:a:0.5:0.2>", "<lora:a:0.5@0>", "<lora:a:te=0.3:dyn=4>"):
        assert the(tag).plan is None


def test_the_hires_pass_has_its_own() -> None:
    assert over("<lora:a:1:hr=0.25>", 2) == [1, 1]
    assert over("<lora:a:1:hr=0.25>", 2, hires=True) == [0.25, 0.25]
    plan = the("<lora:a:1:0.5:hrte=0.1:hrunet=0@0,1@1>").plan
    assert plan is not None
    assert plan.weights(0, 3) == (1, 0.5)
    assert plan.weights(2, 3, hires=True) == (0.1, 1)
    assert plan.changing


@pytest.mark.parametrize("size", LISTS)
def test_as_many_numbers_as_blocks(size: int) -> None:
    values = [number / 10 for number in range(size)]
    blocks = read_blocks(",".join(map(str, values)))
    assert [blocks.of(name) for name in LISTS[size]] == values
    assert len(set(LISTS[size])) == size


def test_blocks_that_a_list_leaves_out_follow_their_neighbours() -> None:
    for_lora = read_blocks(",".join(map(str, range(17))))
    listed = [for_lora.of(name) for name in ("IN00", "IN01", "IN03", "IN06", "IN11", "OUT00")]
    assert listed == [1, 1, 2, 4, 6, 8]
    every = read_blocks("ALL")
    assert all(every.of(name) == 1 for name in LISTS[26])


def test_presets_and_letters() -> None:
    for name, numbers in PRESETS.items():
        assert read_blocks(name.lower()) == read_blocks(numbers)
    assert read_blocks("mine", presets={"Mine": PRESETS["INS"]}) == read_blocks("INS")
    rest = ",".join(["0"] * 8)
    assert [read_blocks(f"X,X+0.5,X-.25,1,{rest}", x=0.5).of(b) for b in LISTS[12][:4]] == [
        0.5,
        1,
        0.25,
        1,
    ]
    drawn = read_blocks(f"R,U,R,U,{rest}", seed="tag")
    assert drawn == read_blocks(f"R,U,R,U,{rest}", seed="tag") != read_blocks(f"R,U,R,U,{rest}")
    assert all(0 <= drawn.of(name) <= 1 for name in ("BASE", "IN05"))


def test_sides() -> None:
    blocks = read_sides({"in": "0.5", "mid": "0.2"})
    assert [blocks.of(name) for name in ("IN00", "IN11", "M00", "OUT03", "BASE")] == [
        0.5,
        0.5,
        0.2,
        1,
        1,
    ]
    each = read_sides({"out": ",".join(map(str, range(12)))})
    assert each.of("OUT07") == 7 and each.of("IN01") == 1
    plan = the("<lora:a:1:in=0:mid=0.5:out=1>").plan
    assert plan is not None and isinstance(plan.blocks, Blocks)
    assert plan.blocks.of("IN04") == 0 and not plan.changing


NUMBERS = st.floats(-4, 4, allow_nan=False)


@given(st.lists(NUMBERS, min_size=2, max_size=5), st.integers(1, 60), st.booleans())
def test_a_curve_stays_between_its_values(values: list[float], steps: int, many: bool) -> None:
    far = 20.0 if many else 1.0
    places = [far * i / (len(values) - 1) for i in range(len(values))]
    text = ",".join(f"{v!r}@{p!r}" for v, p in zip(values, places, strict=True))
    curve = read_curve(text)
    seen = [curve.at(step, steps) for step in range(steps)]
    assert all(min(values) - 1e-9 <= weight <= max(values) + 1e-9 for weight in seen)
    assert seen[0] == values[0]
    if not many and steps > 1:
        assert abs(seen[-1] - values[-1]) < 1e-9


def test_a_factor_scales_a_curve() -> None:
    assert Curve(((0, 1.0), (1, 2.0))).scaled(0.5).at(4, 5) == 1
