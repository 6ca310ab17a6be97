"""AUTOMATIC1111's --medvram and --lowvram in a turn of training, on a model of two parts."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from extensions_lib.hosts.a1111_memory import parts_in_turn

HOOK = "modules.lowvram"


class Halves(nn.Module):
    """Text encoder and UNet: layers whose backward pass needs their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.cond_stage_model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
        self.model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
        self.lowvram = True
        self.requires_grad_(False)


@pytest.fixture
def lowvram(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The WebUI's module of the name, as far as it is used, for one model."""
    made: Any = ModuleType(HOOK)
    made.module_in_gpu, made.device = None, torch.device("cpu")

    def send_everything_to_cpu() -> None:
        if made.module_in_gpu is not None:
            made.module_in_gpu.to("cpu")
        made.module_in_gpu = None

    def send_me_to_gpu(module: nn.Module, _: object) -> None:
        if made.module_in_gpu is not module:
            send_everything_to_cpu()
            module.to(made.device)
            made.module_in_gpu = module

    send_me_to_gpu.__module__ = HOOK
    made.send_me_to_gpu, made.send_everything_to_cpu = send_me_to_gpu, send_everything_to_cpu
    made.is_enabled = lambda sd_model: sd_model.lowvram
    shared = SimpleNamespace(cmd_opts=SimpleNamespace(lowvram=False))
    modules: Any = ModuleType("modules")
    modules.lowvram, modules.shared, modules.devices = made, shared, made
    monkeypatch.setitem(sys.modules, "modules", modules)
    made.flags = shared.cmd_opts
    return made


def hooked(lowvram: Any) -> Halves:
    model = Halves()
    for part in (model.cond_stage_model, model.model):
        part.register_forward_pre_hook(lowvram.send_me_to_gpu)
    return model


def hooks_of(model: Halves) -> list[list[Any]]:
    return [list(module._forward_pre_hooks.values()) for module in model.modules()]


def test_the_webuis_hooks_are_off_and_come_back(lowvram: Any) -> None:
    model = hooked(lowvram)
    model.model.register_forward_pre_hook(print)
    before = hooks_of(model)
    with parts_in_turn(model):
        assert [hook for each in hooks_of(model) for hook in each] == [print]
    assert hooks_of(model) == before
    with pytest.raises(ValueError, match="as asked"), parts_in_turn(model):
        raise ValueError("as asked")
    assert hooks_of(model) == before


def test_without_the_flags_nothing_is_touched(lowvram: Any) -> None:
    model = hooked(lowvram)
    model.lowvram = False
    before = hooks_of(model)
    with parts_in_turn(model) as parts:
        parts.keep(model.model)
        assert hooks_of(model) == before
    assert lowvram.module_in_gpu is None


def test_the_unet_that_was_used_is_known_to_be_there(lowvram: Any) -> None:
    model = hooked(lowvram)
    with parts_in_turn(model) as parts:
        parts.keep(model.cond_stage_model)
    assert lowvram.module_in_gpu is None
    with parts_in_turn(model) as parts:
        parts.keep(model.model)
    assert lowvram.module_in_gpu is model.model
    lowvram.send_everything_to_cpu()
    lowvram.flags.lowvram = True  # there it is many parts to the WebUI, of which one is there
    with parts_in_turn(model) as parts:
        parts.keep(model.model)
    assert lowvram.module_in_gpu is None


@pytest.mark.gpu
@pytest.mark.parametrize("low", [False, True])
def test_gradients_go_back_through_both_parts(lowvram: Any, low: bool) -> None:
    lowvram.device, lowvram.flags.lowvram = torch.device("cuda"), low
    model = hooked(lowvram)
    bits = {name: each.clone() for name, each in model.state_dict().items()}
    x = torch.randn(2, 4, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError):  # as the WebUI's own hooks would have it
        model.model(model.cond_stage_model(x)).sum().backward()
    lowvram.send_everything_to_cpu()
    for _ in range(2):
        with parts_in_turn(model) as parts:
            parts.keep(model.cond_stage_model)
            states = model.cond_stage_model(x)
            parts.keep(model.model)
            model.model(states).sum().backward()
        where = {name: each.device.type for name, each in model.state_dict().items()}
        unet = "cpu" if low else "cuda"
        assert set(where.values()) == {"cpu", unet}
        assert all(where[name] == unet for name in where if name.startswith("model."))
    with parts_in_turn(model) as parts, parts.lend(model.cond_stage_model):
        assert model.cond_stage_model[1].weight.device.type == "cuda"
    assert model.cond_stage_model[1].weight.device.type == "cpu"
    assert all(torch.equal(each.cpu(), bits[name]) for name, each in model.state_dict().items())
    model.model(model.cond_stage_model(x))  # the WebUI's own way works on


@pytest.mark.gpu
def test_a_turn_that_fails_leaves_nothing_behind(lowvram: Any) -> None:
    lowvram.device = torch.device("cuda")
    model = hooked(lowvram)
    with pytest.raises(ValueError, match="as asked"), parts_in_turn(model) as parts:
        parts.keep(model.model)
        raise ValueError("as asked")
    assert lowvram.module_in_gpu is None
    assert all(each.device.type == "cpu" for each in model.parameters())
