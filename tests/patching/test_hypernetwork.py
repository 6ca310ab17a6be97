"""Hypernetworks against float64 formulas and A1111's own class, on a model and off it again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from extensions_lib.files.hypernetworks import ACTIVATIONS, Activation, Mlp, read_hypernetwork
from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.patching.hypernetwork import Hypernetworks, changed, forward
from tests.hyper import hyper_file, mlp_state
from tests.tiny import tiny_checkpoint

FORMULAS: dict[str, Any] = {
    "relu": lambda x: x.clip(0, None),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "swish": lambda x: x * (x + 3).clip(0, 6) / 6,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def by_hand(state: dict[str, Tensor], plan: list[str], x: np.ndarray) -> np.ndarray:
    """The MLP in float64, from the plan "linear.N" | "norm.N" | name of an activation."""
    for step in plan:
        kind, _, number = step.partition(".")
        if kind in FORMULAS:
            x = FORMULAS[kind](x)
            continue
        weight, bias = (state[f"linear.{number}.{p}"].double().numpy() for p in ("weight", "bias"))
        if kind == "linear":
            x = x @ weight.T + bias
        else:
            mean, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            x = (x - mean) / np.sqrt(spread + 1e-5) * weight + bias
    return x


CASES: list[tuple[dict[str, Any], list[str]]] = [
    *[({"activation": name}, ["linear.0", name, "linear.2", name]) for name in FORMULAS],
    ({}, ["linear.0", "linear.1"]),
    (
        {"activation": "relu", "layer_norm": True, "activate_output": False,
         "structure": [1, 2, 1.5, 1], "dropout": [0, 0.3, 0.3, 0]},
        ["linear.0", "relu", "norm.2", "linear.4", "relu", "norm.6", "linear.8", "norm.9"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "plan"), CASES)
@pytest.mark.parametrize("weight", [0.3, 1.0, -0.7])
def test_the_formula(tmp_path: Path, options: Any, plan: list[str], weight: float) -> None:
    found = read_hypernetwork(hyper_file(tmp_path / "h.pt", [8], **options))
    x = torch.randn(2, 5, 8)
    for which in (0, 1):
        state = mlp_state(8, options.get("structure", (1, 2, 1)), seed=which, **{
            key: value for key, value in options.items() if key != "structure"})  # fmt: skip
        expected = x.double().numpy()
        expected = expected + weight * by_hand(state, plan, expected)
        actual = changed(found.mlps[8][which], weight, x).double().numpy()
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert error < 1e-6


def test_every_activation_is_torchs_own_module() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)) * 3
    classes = {name.lower(): getattr(torch.nn, name) for name in dir(torch.nn) if name[0].isupper()}
    for name in sorted(ACTIVATIONS):
        module = torch.nn.Hardswish() if name == "swish" else classes[name]().eval()
        slope = module.weight.detach() if name == "prelu" else None
        assert torch.equal(forward((Activation(name, slope),), x), module(x)), name


def test_gradients_reach_the_layers(tmp_path: Path) -> None:
    mlp: Mlp = read_hypernetwork(hyper_file(tmp_path / "h.pt", [8], activation="relu")).mlps[8][0]
    mlp[0].weight.requires_grad_()  # type: ignore[union-attr]
    forward(mlp, torch.randn(3, 8)).sum().backward()
    assert mlp[0].weight.grad is not None  # type: ignore[union-attr]


# --- on a model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["SD1", "SD2", "SDXL"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("checkpoint")
    return load_checkpoint(tiny_checkpoint(folder / "m.safetensors", request.param), device="cpu")


def answer(model: LoadedModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    extra = {}
    shape = model.structure.unet
    if shape.adm_in_channels is not None:
        extra["added_cond_kwargs"] = {
            "text_embeds": noise(1, shape.adm_in_channels - 6 * 256),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        }
    unet: Any = model.unet
    with torch.inference_mode():
        found: Tensor = unet(
            noise(1, 4, 8, 8), 500, noise(1, 77, shape.context_dim), return_dict=False, **extra
        )[0]
    return found


def hooks(model: LoadedModel) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.unet.modules())


def test_on_and_off_again(model: LoadedModel, tmp_path: Path) -> None:
    context = model.structure.unet.context_dim
    deep = read_hypernetwork(hyper_file(tmp_path / "a.pt", [context, 64, 32], activation="relu"))
    text = read_hypernetwork(hyper_file(tmp_path / "b.pt", [context], seed=9))
    active, plain = Hypernetworks(model), answer(model)
    assert active.apply([(deep, 1.0)]) == []
    one = answer(model)
    assert not torch.allclose(one, plain, atol=1e-3)
    active.apply([(deep, 1.0), (text, 0.5)])
    both, count = answer(model), hooks(model)
    active.apply([(text, 0.5), (deep, 1.0)])
    turned = answer(model)
    assert not torch.allclose(both, turned, atol=1e-5)  # the order counts
    assert hooks(model) == count
    active.apply([(deep, 1.0)])
    assert torch.equal(answer(model), one)
    active.apply([(deep, 0.0)])
    assert hooks(model) == 0 and torch.equal(answer(model), plain)
    active.apply([(deep, 1.0)])
    active.clear()
    assert hooks(model) == 0 and torch.equal(answer(model), plain)


def test_keys_and_values_of_both_attentions_by_width(model: LoadedModel, tmp_path: Path) -> None:
    """Every entrance gets what the formula says for its own width, and no other layer anything."""
    network = read_hypernetwork(hyper_file(tmp_path / "h.pt", [64]))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    names = {name: model.layer(name)[0] for name in model.layers if name.startswith("unet.")}

    def watch(name: str) -> Any:
        def hook(_: Any, args: Any) -> None:
            seen[name] = (seen[name][0], args[0]) if name in seen else (args[0], args[0])

        return hook

    active = Hypernetworks(model)
    for name, module in names.items():
        if ".attn" in name and not name.endswith("to_out.0"):
            handles.append(module.register_forward_pre_hook(watch(name)))
    active.apply([(network, 0.5)])
    for name, module in names.items():
        if ".attn" in name and not name.endswith("to_out.0"):
            handles.append(module.register_forward_pre_hook(watch(name)))
    answer(model)
    for handle in handles:
        handle.remove()
    active.clear()
    assert seen
    for name, (before, after) in seen.items():
        if name.endswith("to_q") or before.shape[-1] != 64:
            assert torch.equal(before, after), name
        else:
            mlp = network.mlps[64][name.endswith("to_v")]
            assert torch.equal(after, changed(mlp, 0.5, before)), name
    ends = {name.split(".")[-2] + name[-5:] for name, (_, x) in seen.items() if x.shape[-1] == 64}
    assert {"attn1.to_k", "attn1.to_v", "attn1.to_q"} <= ends


def test_one_for_other_widths_is_said(model: LoadedModel, tmp_path: Path) -> None:
    network = read_hypernetwork(hyper_file(tmp_path / "far.pt", [768]))
    (message,) = Hypernetworks(model).apply([(network, 1.0)])
    assert message.startswith("far: made for contexts 768 wide; this model's are ")
    assert hooks(model) == 0


# --- A1111's own class ----------------------------------------------------------------------------

THEIRS = """
import sys, torch
sys.argv = ['webui', '--skip-torch-cuda-test', '--use-cpu', 'all', '--no-half']
from modules import initialize
initialize.imports()  # its modules import one another: in its own order
from modules.hypernetworks.hypernetwork import HypernetworkModule
path, x, out = PATHS
state = torch.load(path, map_location='cpu')
structure = state['layer_structure']
answers = []
for sd in state[8]:
    module = HypernetworkModule(8, sd, structure, state['activation_func'], 'Normal',
        state['is_layer_norm'], state['activate_output'], state['dropout_structure'])
    module.eval(); module.multiplier = 0.6
    answers.append(module(torch.load(x)))
torch.save(answers, out, _use_new_zipfile_serialization=False)
"""


@pytest.mark.webui
@pytest.mark.slow
def test_as_a1111s_own_class(tmp_path: Path) -> None:
    checkout = Path(os.environ["WEBUI_DIR"])
    if (checkout / "modules_forge").is_dir():
        pytest.skip("Forge does nothing with hypernetworks")
    path = hyper_file(
        tmp_path / "h.pt", [8], structure=[1, 2, 2, 1], activation="leakyrelu", layer_norm=True,
        dropout=[0, 0.3, 0, 0],
    )  # fmt: skip
    x = torch.randn(2, 5, 8)
    torch.save(x, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    paths = [str(path), str(tmp_path / "x.pt"), str(tmp_path / "out.pt")]
    python = os.environ.get("WEBUI_PYTHON") or str(checkout / "venv" / "bin" / "python")
    subprocess.run(
        [python, "-c", THEIRS.replace("PATHS", repr(paths))], check=True, cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )  # fmt: skip
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    found = read_hypernetwork(path)
    for mlp, expected in zip(found.mlps[8], theirs, strict=True):
        assert torch.allclose(changed(mlp, 0.6, x), expected, atol=1e-6)
