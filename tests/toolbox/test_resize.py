"""Resizing: the rules of sd-scripts by their formulas in float64, and the energy that is stated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.adapters import Adapter, DoRA, LoRA, Norm, adapter_from
from extensions_lib.adapters.base import LowRank
from extensions_lib.errors import CrucibleError
from extensions_lib.files.networks import read_network
from extensions_lib.toolbox.resize import Resizing, resize, spectrum
from extensions_lib.toolbox.spectrum import count, of_factors, of_matrix
from extensions_lib.toolbox.work import Output
from tests.toolbox.networks import (
    CONV,
    NORM,
    SHAPES,
    K,
    Q,
    exact,
    loha,
    lokr,
    lora,
    noise,
    relative,
    written,
)

FP32 = Output(precision="fp32", number=True)


def steep(layer: str, rank: int, seed: int) -> Adapter:
    """A LoRA whose ranks are of very different strength, as trained ones have them."""
    given = lora(layer, rank, rank / 2, seed)
    assert isinstance(given, LoRA)
    falling = torch.logspace(0, -2, rank).view(1, -1, *[1] * (given.up.dim() - 2))
    return LoRA(given.up * falling, given.down, alpha=given.alpha)


def plain_count(values: torch.Tensor, rule: str, target: float) -> int:
    """The rules in plain words, one value at a time."""
    numbers = [float(value) for value in values.double()]
    if rule == "sv_ratio":
        return max(1, sum(value > numbers[0] / target for value in numbers))
    power = 2 if rule == "sv_fro" else 1
    share = target**2 if rule == "sv_fro" else target
    whole, reached = sum(value**power for value in numbers), 0.0
    for place, value in enumerate(numbers, 1):
        reached += value**power
        if reached >= share * whole * (1 - 1e-12):
            return place
    return len(numbers)


@pytest.mark.parametrize("rule", ["sv_fro", "sv_ratio", "sv_cumulative"])
def test_the_rules(rule: str) -> None:
    for seed in range(20):
        values = torch.sort(noise(seed, 30).abs().double() ** 3, descending=True).values
        energy = float(values.square().sum())
        for target in (1.0, 1.5, 4.0, 100.0) if rule == "sv_ratio" else (0.1, 0.5, 0.9, 0.99, 1.0):
            assert count(values, rule, target, energy) == plain_count(values, rule, target)
    assert count(torch.zeros(4), rule, 1.0, 0.0) == 4
    assert count(torch.tensor([3.0, 0.0]), rule, 1.0, 9.0) == 1


@pytest.mark.parametrize("layer", [Q, CONV])
@pytest.mark.parametrize(("rule", "target"), [("sv_fro", 0.95), ("sv_ratio", 8.0), ("sv_cumulative", 0.8)])  # fmt: skip  # noqa: E501
def test_a_network_by_rule(tmp_path: Path, layer: str, rule: str, target: float) -> None:
    given = steep(layer, 16, 1)
    path = written(tmp_path / "n.safetensors", {layer: given}, ss_epoch="4")
    done = resize(path, Resizing(rank=64, rule=rule, target=target), FP32)
    [figures] = done.layers
    whole = exact(given, SHAPES[layer])
    values = torch.linalg.svdvals(whole.flatten(1))[:16]
    assert figures.rank == plain_count(values, rule, target)
    found = read_network(done.path)
    error = relative(exact(found.adapters[layer], SHAPES[layer]), whole)
    assert figures.kept == pytest.approx(1 - error**2, abs=1e-5)
    torch.testing.assert_close(
        torch.tensor(figures.curve, dtype=torch.float64),
        (values.square().cumsum(0) / values.square().sum()),
        atol=1e-5,
        rtol=0,
    )
    assert (found.metadata["ss_epoch"], found.metadata["ss_network_dim"]) == ("4", "Dynamic")
    assert figures.before == 16


def test_more_ranks_than_there_are_change_nothing(tmp_path: Path) -> None:
    given = {Q: steep(Q, 6, 1), CONV: steep(CONV, 5, 2)}
    path = written(tmp_path / "n.safetensors", given)
    found = read_network(resize(path, Resizing(rank=32), FP32).path)
    for layer, adapter in found.adapters.items():
        assert adapter.rank == given[layer].rank
        error = relative(exact(adapter, SHAPES[layer]), exact(given[layer], SHAPES[layer]))
        assert error < 1e-5


def test_convolutions_may_have_ranks_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path / "n.safetensors", {Q: steep(Q, 8, 1), CONV: steep(CONV, 8, 2)})
    found = read_network(resize(path, Resizing(rank=6, conv_rank=2), FP32).path)
    assert (found.adapters[Q].rank, found.adapters[CONV].rank) == (6, 2)


def test_every_kind_becomes_a_lora(tmp_path: Path) -> None:
    full = adapter_from({"diff": noise(5, 640, 768) * 0.01})
    given = {Q: loha(Q, 3, 1), K: full, NORM: Norm(noise(9, 320))}
    path = written(tmp_path / "n.safetensors", given)
    done = resize(path, Resizing(rank=9), FP32)
    found = read_network(done.path)
    assert isinstance(found.adapters[Q], LoRA) and isinstance(found.adapters[K], LoRA)
    assert done.whole == 1 and isinstance(found.adapters[NORM], Norm)
    kept = {each.layer: each.kept for each in done.layers}
    assert kept[Q] > 1 - 1e-5  # rank 3 times rank 3 is rank 9 at most
    for layer in (Q, K):
        error = relative(exact(found.adapters[layer], SHAPES[layer]), exact(given[layer], SHAPES[layer]))  # fmt: skip  # noqa: E501
        assert kept[layer] == pytest.approx(1 - error**2, abs=1e-5)


def test_a_lokr_keeps_its_energy(tmp_path: Path) -> None:
    path = written(tmp_path / "n.safetensors", {Q: lokr(Q, 1)})
    [figures] = resize(path, Resizing(rank=24), FP32).layers
    assert figures.kept > 1 - 1e-5  # 8 ranks of w1 times 3 of w2


def test_a_dylora_is_cut_as_it_stands(tmp_path: Path) -> None:
    given = lora(Q, 8, 4.0, 1)
    assert isinstance(given, LoRA)
    path = written(tmp_path / "n.safetensors", {Q: given})
    done = resize(path, Resizing(rank=3, first=True), FP32)
    found = read_network(done.path).adapters[Q]
    assert isinstance(found, LoRA)
    assert torch.equal(found.up, given.up[:, :3]) and torch.equal(found.down, given.down[:3])
    assert found.scale == given.scale
    whole = exact(given, SHAPES[Q])
    assert done.layers[0].kept == pytest.approx(
        float(exact(found, SHAPES[Q]).square().sum() / whole.square().sum()), abs=1e-5
    )
    path = written(tmp_path / "h.safetensors", {Q: loha(Q, 3, 1)})
    with pytest.raises(CrucibleError, match="no order"):
        resize(path, Resizing(rank=3, first=True), FP32)


def test_the_curve_alone_writes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "n.safetensors", {Q: steep(Q, 8, 1), NORM: Norm(noise(1, 320))})
    [figures] = spectrum(path)
    assert figures.curve[-1] == pytest.approx(1.0) and len(figures.curve) == 8
    assert sorted(figures.curve) == list(figures.curve)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "how",
    [
        Resizing(rule="sv_fro"),
        Resizing(rule="sv_fro", target=1.5),
        Resizing(rule="sv_ratio", target=0.5),
        Resizing(target=0.5),
    ],
)
def test_orders_without_meaning(tmp_path: Path, how: Resizing) -> None:
    path = written(tmp_path / "n.safetensors", {Q: steep(Q, 8, 1)})
    with pytest.raises(CrucibleError):
        resize(path, how)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    parts = lora(Q, 2, 1.0, 1).tensors()
    parts["lora_up.weight"][0, 0] = float("nan")
    path = written(tmp_path / "n.safetensors", {Q: adapter_from(parts)})
    with pytest.raises(CrucibleError, match=r"no numbers"):
        resize(path, Resizing(rank=1))
    assert list(tmp_path.iterdir()) == [path]


def test_factors_and_matrix_agree() -> None:
    up, down = noise(1, 60, 5).double(), noise(2, 5, 90).double()
    one, two = of_factors(LowRank(up, down, -0.5)), of_matrix(-0.5 * up @ down)
    torch.testing.assert_close(one.values, two.values[:5])
    assert one.energy == pytest.approx(two.energy)
    torch.testing.assert_close((one.left * one.values) @ one.right, -0.5 * up @ down)


def test_dora_is_said_to_need_its_checkpoint(tmp_path: Path) -> None:
    inner = lora(Q, 2, 1.0, 1)
    path = written(tmp_path / "n.safetensors", {Q: DoRA(inner, noise(3, 320, 1).abs())})
    with pytest.raises(CrucibleError, match="--base"):
        resize(path, Resizing(rank=2))
