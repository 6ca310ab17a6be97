"""Networks that change a layer's bias, also where the layer has none."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from extensions_lib.adapters import Adapter
from extensions_lib.adapters.full import Full
from extensions_lib.patching import ActiveSet, Wanted
from tests.patching.standin import StandIn


@dataclass
class Network:
    """Adapters under a name."""

    adapters: dict[str, Adapter]
    name: str = "some"
    key: tuple = field(default=("some", 0, 0))


@pytest.fixture
def model() -> StandIn:
    return StandIn()


def test_weight_and_bias_change_together_and_come_back(model: StandIn) -> None:
    layer = model.tree.linear
    weight, bias = layer.weight, layer.bias
    change = Full(diff=torch.randn(12, 10), diff_b=torch.randn(12))
    active = ActiveSet(model)
    report = active.apply([Wanted(Network({"unet.linear": change}), unet=0.5)])
    assert report.unfit == [] and report.layers == 2
    assert change.diff is not None and change.diff_b is not None
    assert torch.allclose(layer.weight, weight + 0.5 * change.diff)
    assert torch.allclose(layer.bias, bias + 0.5 * change.diff_b)
    active.park()
    assert layer.weight is weight and layer.bias is bias
    assert active.apply([Wanted(Network({"unet.linear": change}), unet=0.5)]).changed == 2
    active.release()
    assert layer.bias is bias


def test_a_bias_alone(model: StandIn) -> None:
    layer = model.tree.conv
    weight, bias = layer.weight, layer.bias
    active = ActiveSet(model)
    only = Full(diff_b=torch.ones(8))
    assert active.apply([Wanted(Network({"unet.conv": only}), unet=2)]).layers == 1
    assert layer.weight is weight and torch.equal(layer.bias, bias + 2)
    active.clear()
    assert layer.bias is bias


def test_a_layer_without_bias_gets_one_and_loses_it(model: StandIn) -> None:
    layer = model.tree.linear
    layer.bias = None
    given = torch.randn(3, 10)
    plain = layer(given)
    active = ActiveSet(model)
    wanted = [Wanted(Network({"unet.linear": Full(diff_b=torch.ones(12))}), unet=1)]
    active.apply(wanted)
    assert torch.allclose(layer(given), plain + 1)
    active.park()
    assert layer.bias is None and torch.equal(layer(given), plain)
    active.apply(wanted)
    assert torch.allclose(layer(given), plain + 1)
    active.clear()
    assert layer.bias is None


def test_a_part_of_a_fused_bias(model: StandIn) -> None:
    fused = model.tree.fused
    bias = fused.in_proj_bias
    active = ActiveSet(model)
    adapters: dict[str, Adapter] = {
        "te2.q": Full(diff_b=torch.ones(8)),
        "te2.v": Full(diff_b=torch.full((8,), 2.0)),
    }
    active.apply([Wanted(Network(adapters), te=1)])
    expected = torch.cat([torch.ones(8), torch.zeros(8), torch.full((8,), 2.0)])
    assert torch.allclose(fused.in_proj_bias, bias + expected)
    active.clear()
    assert fused.in_proj_bias is bias


def test_a_bias_of_another_size_is_said_and_the_weight_still_applies(model: StandIn) -> None:
    change = Full(diff=torch.ones(12, 10), diff_b=torch.ones(12))
    change.diff_b = torch.ones(7)
    report = ActiveSet(model).apply([Wanted(Network({"unet.linear": change}), unet=1)])
    assert len(report.unfit) == 1 and "bias" in report.unfit[0] and report.layers == 1
