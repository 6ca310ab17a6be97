"""A layer by groups of samples whose weights are made in each pass."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from extensions_lib.adapters import Adapter, adapter_from, merged
from extensions_lib.patching import Planner, Wanted, together
from extensions_lib.patching.by_group import Anew
from extensions_lib.patching.rows import Rows
from tests.patching.standin import Net

ROWS = [0, 1, 2, 1]


class Model:
    def __init__(self, layer: nn.Module) -> None:
        self.module, self.layers = layer, {"unet.layer": SimpleNamespace(transposed=False)}

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]:
        return self.module, "weight", None


class Manual(nn.Linear):
    """Takes its weight to what it is asked about, as Forge's layers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.bias is not None
        return F.linear(x, self.weight.to(x), self.bias.to(x))


def loha() -> Adapter:
    draw = torch.Generator().manual_seed(9)
    sizes = {"hada_w1_a": (12, 2), "hada_w1_b": (2, 10), "hada_w2_a": (12, 2), "hada_w2_b": (2, 10)}
    return adapter_from({k: torch.randn(size, generator=draw) * 0.5 for k, size in sizes.items()})


def standing(layer: nn.Module, adapter: Adapter) -> Anew:
    network: Any = Net("some", "key", {"unet.layer": adapter})
    pictures = [[Wanted(network, unet=0.8)], [], [Wanted(network, unet=-0.5)]]
    layout = Planner(Model(layer)).layout(together(pictures))  # type: ignore[arg-type]
    ((_, groups),) = layout.groups.items()
    rows = Rows()
    rows.set(ROWS)
    return Anew(groups, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_each_sample_has_its_own_out_of_the_weight_of_that_pass(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, adapter = Manual(10, 12).requires_grad_(False), loha()
    layer.weight.data = layer.weight.data.to(dtype)
    x = torch.randn(len(ROWS), 3, 10)
    around = standing(layer, adapter)
    for _ in range(2):
        held = dict(layer._parameters)
        around.put_in()
        y = layer(x)
        around.take_out()
        assert layer._parameters == held and "forward" not in vars(layer)
        for sample, picture in enumerate(ROWS):
            weight = merged(layer.weight.float(), [(adapter, (0.8, 0.0, -0.5)[picture])])
            wanted = F.linear(x[sample], weight, layer.bias)
            torch.testing.assert_close(y[sample], wanted, rtol=1e-5, atol=1e-5)
        # a host that has moved the layer in between has another tensor there
        layer.weight = nn.Parameter(torch.randn(12, 10).to(dtype), requires_grad=False)


def test_a_forward_that_fails_gives_the_weight_back() -> None:
    layer = nn.Linear(10, 12).requires_grad_(False)
    around, held = standing(layer, loha()), copy.copy(layer._parameters)
    around.put_in()
    with pytest.raises(RuntimeError):
        layer(torch.randn(len(ROWS), 3, 11))
    assert all(layer._parameters[name] is each for name, each in held.items())
    around.take_out()
