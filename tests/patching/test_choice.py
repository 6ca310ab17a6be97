"""Merged or beside: the one place where that is decided, and what it goes by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions_lib.patching.choice import Course, Layer, Share, beside, positions

SMALL = Course(changes=20, forwards=20, rows=2, area=8 * 8)
DEEP = Layer((1280, 1280), positions=2 * 64)  # the middle of an SD1 UNet at 512 x 512
WIDE = Layer((320, 320), positions=2 * 4096)  # its first blocks
RAMP = Course(changes=20, forwards=20)


def choose(layer: Layer, *shares: Share) -> list[bool]:
    return beside(layer, shares)


def test_a_weight_that_stays_is_merged() -> None:
    assert choose(DEEP, Share(32), Share(4)) == [False, False]


def test_a_weight_that_changes_goes_where_that_takes_less_time() -> None:
    assert choose(DEEP, Share(32, RAMP)) == [True]
    assert choose(WIDE, Share(32, RAMP)) == [False]
    # Twice on a long way: two merges cost less than a side path at each step.
    assert choose(DEEP, Share(32, Course(changes=2, forwards=40))) == [False]
    # On a GPU the time to start anything at all decides.
    gpu = Layer(WIDE.shape, positions=WIDE.positions, device="cuda")
    assert choose(gpu, Share(32, RAMP)) == [True]
    # What stays is merged once, whatever is beside.
    assert choose(DEEP, Share(32), Share(32, RAMP)) == [False, True]


def test_where_a_weight_is_merged_anyway_a_changing_one_joins_in() -> None:
    little = Layer((320, 320), positions=154)
    assert choose(little, Share(4, RAMP)) == [True]
    assert choose(little, Share(None, RAMP), Share(4, RAMP)) == [False, False]


def test_a_coarse_weight_has_all_low_rank_shares_beside_it() -> None:
    coarse = Layer((320, 320), coarse=True)
    assert choose(coarse, Share(8), Share(None), Share(0), Share(8, RAMP)) == [
        True, False, True, True,
    ]  # fmt: skip


def test_pictures_with_weights_of_their_own() -> None:
    own = Share(32, of_each=True)
    assert choose(WIDE, own, Share(8)) == [True, False]
    assert choose(WIDE, own, Share(8, RAMP)) == [True, False]
    # A kind that cannot: the layer is computed by groups, with merged weights that hold all.
    assert choose(WIDE, own, Share(None, of_each=True), Share(4)) == [False] * 3
    # A kind that cannot but is the same for all is merged, and the others stand beside that.
    assert choose(WIDE, own, Share(None)) == [True, False]


SHARES = st.builds(
    Share,
    st.sampled_from([None, 0, 1, 32, 128]),
    st.none() | st.builds(Course, st.integers(1, 50), st.integers(1, 50)),
    st.booleans(),
)
LAYERS = st.builds(
    Layer,
    st.sampled_from([(4, 4), (320, 768), (1280, 1280), (320, 320, 3, 3)]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 100_000),
    st.sampled_from(["cpu", "cuda", "mps"]),
)


@given(LAYERS, st.lists(SHARES, min_size=1, max_size=5))
def test_what_has_no_low_rank_form_or_no_room_is_never_beside(
    layer: Layer, shares: list[Share]
) -> None:
    chosen = beside(layer, shares)
    assert len(chosen) == len(shares)
    for share, aside in zip(shares, chosen, strict=True):
        if share.rank is None or not layer.able:
            assert not aside
        if share.course is None and not share.of_each and not layer.coarse:
            assert not aside
    # Either every picture's own share is beside, or none is: a group's weight holds all of them.
    assert len({a for s, a in zip(shares, chosen, strict=True) if s.of_each}) <= 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 128),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 32),
        ("unet.mid_block.attentions.0.proj_in", 2),
        ("unet.up_blocks.0.resnets.0.conv1", 2),
        ("unet.up_blocks.3.resnets.0.conv1", 128),
        ("unet.up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_k", 154),
        ("unet.time_embedding.linear_1", 2),
        ("unet.conv_in", 128),
    ],
)
def test_positions_of_a_layer(name: str, expected: int) -> None:
    assert positions(name, 4, SMALL) == expected
