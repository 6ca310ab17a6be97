"""Layers computed by `adapters.products` in a model: the same answers, and no trace afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.adapters import LoRA, products
from extensions_lib.patching import passes
from extensions_lib.patching.in_training import InTraining
from extensions_lib.patching.passes import FastPasses

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="a torch without oneDNN's products"
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.rim = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(16, 16, 3, padding="same")
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.wide = nn.Linear(24, 40)
        self.norm = nn.LayerNorm(40)
        self.attention = nn.MultiheadAttention(40, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.inner, self.grouped, self.rim, self.same, self.down):
            x = layer(x)
        tokens = self.norm(self.wide(x.flatten(2).transpose(1, 2)))
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class Own(nn.Linear):
    """A layer of somebody's with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_SMALL", 1)
    monkeypatch.setattr(products, "_onednn", lambda: True)
    for name in ("_WORK", "_WORK_OF_NODE", "_ROWS"):
        monkeypatch.setattr(products, name, 1)


def model_of(unet: nn.Module, device: str = "cpu") -> Any:
    layers = {"unet.wide": 0}
    found = SimpleNamespace(unet=unet, text_encoders=(), device=torch.device(device), layers=layers)
    found.layer = lambda name: (unet.get_submodule(name.removeprefix("unet.")), "weight", None)
    return found


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False).eval()


def asked(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = net(x)
    y.square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def test_same_answers_and_gradients(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = asked(net)
    calls: list[str] = []
    plain = products._multiplied
    monkeypatch.setattr(
        products, "_multiplied", lambda *told: (calls.append("one"), plain(*told))[1]
    )
    standing = FastPasses(model_of(net))
    standing.put_in()
    standing.put_in()
    found = asked(net)
    # inner, down and wide, each forwards and back
    assert len(calls) == 6
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_trace_is_left(net: Net) -> None:
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    standing = FastPasses(model_of(net))
    standing.put_in()
    assert "forward" in vars(net.inner)
    standing.take_out()
    standing.take_out()
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before


def test_layers_of_others_and_other_devices_are_left_alone(net: Net) -> None:
    own = Own(8, 8)
    standing = FastPasses(model_of(nn.Sequential(own, net)))
    standing.put_in()
    alone = [own, net.grouped, net.rim, net.same, net.attention.out_proj, net.norm]
    assert not any("forward" in vars(each) for each in alone)
    standing.take_out()
    away = FastPasses(model_of(net, "cuda"))
    away.put_in()
    assert "forward" not in vars(net.inner)


def test_a_weight_of_another_type_goes_its_own_way(net: Net) -> None:
    standing = FastPasses(model_of(net.double()))
    standing.put_in()
    x = torch.randn(1, 4, 8, 8).double()
    with_them = net(x)
    standing.take_out()
    assert torch.equal(with_them, net(x))


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(self.inner(x).transpose(1, 3).repeat(1, 1, 1, 2)[..., :24])
        y += 1
        return y


def test_a_model_that_changes_answers_in_place() -> None:
    net = InPlace().requires_grad_(False)
    lora = LoRA.fresh((40, 24), 4)
    lora.up.normal_()
    answers = []
    for around in (False, True):
        model = model_of(net)
        standing, learning = FastPasses(model), InTraining(model, {"unet.wide": lora})
        if around:
            standing.put_in()
        learning.put_in()
        answers.append(asked(net)[1])
        standing.take_out()
        learning.take_out()
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank_dropout", [0.0, 0.5])
def test_adapters_in_training_stand_around_them(net: Net, rank_dropout: float) -> None:
    from extensions_lib.patching.in_training import Dropouts

    lora = LoRA.fresh((40, 24), 4, 2.0, generator=torch.Generator().manual_seed(2))
    lora.up.normal_(generator=torch.Generator().manual_seed(3))
    for part in lora.parameters().values():
        part.requires_grad_(True)
    answers = []
    for around in (False, True):
        model = model_of(net)
        standing = FastPasses(model)
        learning = InTraining(model, {"unet.wide": lora}, dropouts=Dropouts(rank=rank_dropout))
        if around:
            standing.put_in()
        learning.put_in()
        torch.manual_seed(4)
        y, to_x = asked(net)
        answers.append([y, to_x, *(part.grad.clone() for part in lora.parameters().values())])  # type: ignore[union-attr]
        for part in lora.parameters().values():
            part.grad = None
        learning.take_out()
        standing.take_out()
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
