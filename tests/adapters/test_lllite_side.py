"""The side path of a ControlNet-LLLite against its formula in plain numpy, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from extensions_lib.adapters.base import AdapterError
from extensions_lib.adapters.lllite import LLLite
from tests.lllite import by_hand, side_parts

WIDTH = 12


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("conv", [False, True])
def test_the_formula(depth: int, conv: bool) -> None:
    parts = side_parts(WIDTH, depth, conv=conv)
    picture = noise(1, 3, 64, 96, seed=1)
    made = LLLite.from_tensors(parts).to("cpu", torch.float64)
    assert (made.stride, made.cond_dim, made.mlp_dim, made.width) == (4 << depth, 8, 4, WIDTH)
    tokens = (64 // made.stride) * (96 // made.stride)
    x = noise(2, tokens, WIDTH, seed=2)
    found = made.side(x, made.told(picture))
    for row in range(2):  # one picture, both rows of a guided pair
        expected = by_hand(parts, picture[0].numpy(), x[row].numpy())
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-10, atol=1e-12)


def test_an_input_with_channels_first_is_the_same() -> None:
    made = LLLite.from_tensors(side_parts(WIDTH, 1, conv=True)).to("cpu", torch.float64)
    told = made.told(noise(1, 3, 32, 24))
    x = noise(2, WIDTH, 4, 3)
    rows = made.side(x.flatten(2).mT, told)
    assert torch.equal(made.side(x, told), rows.mT.reshape(x.shape))


def test_sides_that_are_no_multiples_round_up_as_the_unet_does() -> None:
    made = LLLite.from_tensors(side_parts(WIDTH, 2)).to("cpu", torch.float64)
    picture = noise(1, 3, 40, 72)
    grid = made.told(picture).reshape(1, 3, 5, -1)  # 40 / 16 and 72 / 16, rounded up
    whole = made.told(picture[..., :32, :64]).reshape(1, 2, 4, -1)
    torch.testing.assert_close(grid[:, :2, :4], whole)


def test_low_precision_says_the_same_of_a_picture() -> None:
    made = LLLite.from_tensors(side_parts(WIDTH, 3))
    picture = noise(1, 3, 64, 64).float()
    exact = made.told(picture)
    assert exact.dtype == torch.float32
    half = made.to("cpu", torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert half.told(picture).dtype == torch.float32
        assert torch.equal(made.told(picture), exact)


def test_every_part_learns_and_a_fresh_one_adds_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    made = LLLite.fresh(WIDTH, 2, cond_dim=8, mlp_dim=4, generator=generator)
    x, picture = noise(1, 4, WIDTH).float(), noise(1, 3, 32, 32).float()
    assert not made.side(x, made.told(picture)).any()
    parameters = made.parameters()
    assert set(parameters) == set(side_parts(WIDTH, 2))
    trained = {name: part.clone().requires_grad_() for name, part in parameters.items()}
    with torch.no_grad():
        trained["up.0.weight"].normal_(generator=generator)
    again = LLLite.from_tensors(trained)
    again.side(x, again.told(picture)).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(part.grad is not None and part.grad.any() for part in trained.values())


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("conditioning1.2.weight", None, "conditioning1.2.weight"),
        ("up.0.bias", None, "up.0.bias"),
        ("conditioning1.0.weight", lambda t: t[:, :1], "conditioning1.0"),
        ("conditioning1.0.weight", lambda t: t[..., :2], "conditioning1.0"),
        ("conditioning1.2.weight", lambda t: t[..., :1, :1], "shrinks"),
        ("down.0.weight", lambda t: t[:, :5], "down.0"),
        ("mid.0.weight", lambda t: t[:, 1:], "mid.0"),
        ("up.0.weight", lambda t: t.int(), "up.0"),
        ("up.0.weight", lambda t: t[:0], "up.0"),
        ("mid.0.bias", lambda t: t[None], "mid.0.bias"),
        ("lora_up.weight", lambda t: t, "lora_up"),
    ],
)
def test_what_it_refuses(name: str, change: object, word: str) -> None:
    parts = side_parts(WIDTH, 2)
    if change is None:
        del parts[name]
    else:
        parts[name] = change(parts.get(name, torch.ones(2, 2)))  # type: ignore[operator]
    with pytest.raises(AdapterError, match=word):
        LLLite.from_tensors(parts)


def test_a_fresh_one_of_impossible_sizes() -> None:
    with pytest.raises(AdapterError, match="depth is 4"):
        LLLite.fresh(WIDTH, 4)
    with pytest.raises(AdapterError, match="mlp_dim"):
        LLLite.fresh(WIDTH, 1, mlp_dim=0)
