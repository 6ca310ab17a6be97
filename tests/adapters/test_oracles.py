"""Every kind against the systems that train it: the `forward` of lycoris-lora, peft, kohya's OFT.

lycoris-lora runs in float64 where it can, so that the errors found are our own. Where a multiplier
means something else there (see the docstrings of dora, oft and boft), it runs at 1 and its output
is interpolated.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.adapters import Adapter, adapter_from
from tests.adapters.cases import CASES, Case, Parts, relative

MULTIPLIERS = [0.3, 1.0, -0.7]


def layer_for(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    if len(shape) == 1:
        layer: nn.Module = nn.LayerNorm(shape[0])
        nn.init.normal_(layer.weight)
        return layer.to(dtype)
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0]).to(dtype)
    return nn.Conv2d(shape[1], shape[0], shape[2], padding=shape[2] // 2).to(dtype)


def input_for(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = (7, shape[-1]) if len(shape) < 3 else (3, shape[1], 5, 5)
    return torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=dtype)


def effect(layer: nn.Module, adapter: Adapter, multiplier: float, x: Tensor) -> Tensor:
    """What our change of weight and bias adds to the layer's output; the sum in float64."""
    weight, bias = layer.weight.detach(), layer.bias
    copy = layer_for(tuple(weight.shape), torch.float64)
    copy.weight.data = weight.double()
    copy.bias.data = bias.detach().double()
    before = copy(x.double())
    # The change alone: the rounding of W + change is not the kind's.
    change = multiplier * adapter.delta(weight.float()).double()
    copy.weight.data = copy.weight.data + change
    if (shift := adapter.bias_delta(bias.float())) is not None:
        copy.bias.data = copy.bias.data + multiplier * shift.double()
    return (copy(x.double()) - before).detach()


# case: module of lycoris, class, its options, whether it computes in float64, whether its
# multiplier is interpolated
LYCORIS: dict[str, tuple[str, str, dict[str, Any], bool, bool]] = {
    "lora": ("locon", "LoConModule", {"lora_dim": 3}, True, False),
    "lora 1x1": ("locon", "LoConModule", {"lora_dim": 3}, True, False),
    "lora 3x3": ("locon", "LoConModule", {"lora_dim": 3}, True, False),
    "lora tucker": ("locon", "LoConModule", {"lora_dim": 3, "use_tucker": True}, True, False),
    "loha": ("loha", "LohaModule", {"lora_dim": 3}, True, False),
    "loha 1x1": ("loha", "LohaModule", {"lora_dim": 3}, True, False),
    "loha 3x3": ("loha", "LohaModule", {"lora_dim": 3}, True, False),
    "loha tucker": ("loha", "LohaModule", {"lora_dim": 3, "use_tucker": True}, True, False),
    "glora": ("glora", "GLoRAModule", {"lora_dim": 3}, True, False),
    "glora 1x1": ("glora", "GLoRAModule", {"lora_dim": 3}, True, False),
    "glora 3x3": ("glora", "GLoRAModule", {"lora_dim": 3}, True, False),
    "ia3 out": ("ia3", "IA3Module", {}, True, False),
    "ia3 in": ("ia3", "IA3Module", {"train_on_input": True}, True, False),
    "ia3 out 3x3": ("ia3", "IA3Module", {}, True, False),
    "ia3 in 3x3": ("ia3", "IA3Module", {"train_on_input": True}, True, False),
    "full": ("full", "FullModule", {}, True, False),
    "full 3x3": ("full", "FullModule", {}, True, False),
    "norm": ("norms", "NormModule", {}, True, False),
    "oft": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "constraint": 1.0}, False, False),
    "oft held": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "constraint": 0.05}, False, False),
    "diag-oft": ("diag_oft", "DiagOFTModule", {"lora_dim": 2}, False, False),
    "diag-oft rescaled": (
        "diag_oft", "DiagOFTModule", {"lora_dim": 4, "rescaled": True}, False, True
    ),
    "boft": ("boft", "ButterflyOFTModule", {"lora_dim": 4}, False, True),
    "boft held": ("boft", "ButterflyOFTModule", {"lora_dim": 2, "constraint": 0.05}, False, True),
    "boft 3x3": ("boft", "ButterflyOFTModule", {"lora_dim": 4, "rescaled": True}, False, True),
}  # fmt: skip
# LyCORIS splits 36 as 6 x 6 and 24 as 4 x 6
_KRON = {"lokr": ((36, 24), {}), "lokr 1x1": ((36, 24, 1, 1), {}), "lokr 3x3": ((36, 24, 3, 3), {}),
         "lokr tucker": ((36, 24, 3, 3), {"use_tucker": True}),
         "lokr pairs": ((36, 24), {"decompose_both": True}),
         "lokr pairs 3x3": ((36, 24, 3, 3), {"decompose_both": True}),
         "lokr whole": ((36, 24), {"full_matrix": True}),
         "lokr whole 3x3": ((36, 24, 3, 3), {"full_matrix": True})}  # fmt: skip
for _name in ("lora", "lora 3x3", "loha 3x3"):
    for _side in ("out", "in"):
        _module, _class, _options, *_ = LYCORIS[_name]
        _wd = {"weight_decompose": True, "wd_on_out": _side == "out"}
        LYCORIS[f"dora {_side} {_name}"] = (_module, _class, {**_options, **_wd}, True, True)


def lycoris_module(
    module: str, kind: str, layer: nn.Module, multiplier: float, options: dict[str, Any]
) -> nn.Module:
    pytest.importorskip("lycoris")
    made = getattr(importlib.import_module(f"lycoris.modules.{module}"), kind)
    return made("layer", layer, multiplier=multiplier, alpha=1.5, **options)


def set_parts(module: nn.Module, parts: Parts) -> None:
    """Put the parts where lycoris has them, each of the shape that it has itself."""
    names = {"diff": "weight", "diff_b": "bias"}
    for name, value in parts.items():
        if name in ("alpha", "on_input"):
            continue
        owner, _, last = names.get(name, name).rpartition(".")
        target = getattr(module.get_submodule(owner), last)
        assert target.shape == value.shape, name
        target.data.copy_(value)


def lycoris_effect(layer: nn.Module, theirs: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return theirs(x).double() - layer(x).double()


def compare(
    layer: nn.Module,
    parts: Parts,
    build: Any,
    x: Tensor,
    multiplier: float,
    interpolated: bool,
) -> float:
    theirs = build(layer, 1.0 if interpolated else multiplier)
    theirs.to(x.dtype)
    set_parts(theirs, parts)
    expected = lycoris_effect(layer, theirs, x) * (multiplier if interpolated else 1)
    return relative(effect(layer, adapter_from(parts), multiplier, x), expected)


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("name", LYCORIS)
def test_agrees_with_the_forward_of_lycoris(name: str, multiplier: float) -> None:
    module, kind, options, double, interpolated = LYCORIS[name]
    case: Case = CASES[name]
    dtype = torch.float64 if double else torch.float32
    layer, parts = layer_for(case.shape, dtype), case.parts()
    error = compare(
        layer,
        parts,
        lambda layer, m: lycoris_module(module, kind, layer, m, options),
        input_for(case.shape, dtype),
        multiplier,
        interpolated,
    )
    assert error < 1e-5


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("lengths", [None, "out", "in"])
@pytest.mark.parametrize("name", _KRON)
def test_lokr_agrees_with_the_forward_of_lycoris(
    name: str, lengths: str | None, multiplier: float
) -> None:
    shape, options = _KRON[name]
    if lengths is not None:
        options = {**options, "weight_decompose": True, "wd_on_out": lengths == "out"}
    layer, x = layer_for(shape, torch.float64), input_for(shape, torch.float64)

    def build(layer: nn.Module, multiplier: float) -> nn.Module:
        options_now = {"lora_dim": 2, **options}
        return lycoris_module("lokr", "LokrModule", layer, multiplier, options_now)

    drawn = build(layer, 1.0).custom_state_dict()
    torch.manual_seed(5)
    parts = {
        key: value.detach().float() if key == "alpha" else torch.randn(value.shape)
        for key, value in drawn.items()
    }
    if lengths is not None:
        parts["dora_scale"] += 4
    assert compare(layer, parts, build, x, multiplier, lengths is not None) < 1e-5


def peft_layer(layer: nn.Module, config: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(nn.Sequential(layer), config).base_model.model[0]


def peft_effect(layer: nn.Module, wrapped: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return wrapped(x).double() - wrapped.base_layer(x).double()


@pytest.mark.parametrize("name", ["loha", "loha 1x1", "loha 3x3", "loha tucker"])
def test_loha_agrees_with_peft(name: str) -> None:
    peft = pytest.importorskip("peft")
    case = CASES[name]
    layer, x = layer_for(case.shape, torch.float64), input_for(case.shape, torch.float64)
    config = peft.LoHaConfig(
        r=3, alpha=1.5, target_modules=["0"], use_effective_conv2d=name == "loha tucker"
    )
    wrapped, parts = peft_layer(layer, config), case.parts()
    for part, value in parts.items():
        if part != "alpha":
            getattr(wrapped, part)["default"].data = value.double()
    ours = effect(layer, adapter_from(parts), 1.0, x)
    assert relative(ours, peft_effect(layer, wrapped, x)) < 1e-5


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("shape", [(36, 24), (36, 24, 1, 1), (36, 24, 3, 3)])
def test_lokr_agrees_with_peft(shape: tuple[int, ...], effective: bool, both: bool) -> None:
    peft = pytest.importorskip("peft")
    layer, x = layer_for(shape, torch.float64), input_for(shape, torch.float64)
    config = peft.LoKrConfig(
        r=2, alpha=1.5, target_modules=["0"], init_weights=False,
        decompose_both=both, use_effective_conv2d=effective,
    )  # fmt: skip
    wrapped = peft_layer(layer, config)
    wrapped.double()
    parts = {
        name: getattr(wrapped, name)["default"].detach().float()
        for name in wrapped.adapter_layer_names
        if "default" in getattr(wrapped, name)
    }
    for name, value in parts.items():
        getattr(wrapped, name)["default"].data = value.double()
    ours = effect(layer, adapter_from({**parts, "alpha": torch.tensor(1.5)}), 1.0, x)
    assert relative(ours, peft_effect(layer, wrapped, x)) < 1e-5


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("shape", [(16, 12), (16, 12, 3, 3)])
def test_ia3_agrees_with_peft(shape: tuple[int, ...], on_input: bool) -> None:
    """peft stores 1 + w, and scales the bias too for output channels."""
    peft = pytest.importorskip("peft")
    layer, x = layer_for(shape, torch.float64), input_for(shape, torch.float64)
    nn.init.zeros_(layer.bias)
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=["0"] if on_input else [])
    wrapped = peft_layer(layer, config)
    weight = 0.2 * torch.randn(wrapped.ia3_l["default"].shape)
    wrapped.ia3_l["default"].data = 1 + weight.double()
    parts = {"weight": weight, "on_input": torch.tensor(int(on_input))}
    ours = effect(layer, adapter_from(parts), 1.0, x)
    assert relative(ours, peft_effect(layer, wrapped, x)) < 1e-5


@pytest.mark.parametrize("name", ["lora", "lora 1x1", "lora 3x3"])
@pytest.mark.parametrize("dora", [False, True])
def test_lora_and_dora_agree_with_peft(name: str, dora: bool) -> None:
    peft = pytest.importorskip("peft")
    case = CASES[name]
    layer, x = layer_for(case.shape, torch.float64), input_for(case.shape, torch.float64)
    config = peft.LoraConfig(r=3, lora_alpha=1.5, target_modules=["0"], use_dora=dora)
    wrapped, parts = peft_layer(layer, config), case.parts()
    wrapped.double()
    wrapped.lora_A["default"].weight.data = parts["lora_down.weight"].double()
    wrapped.lora_B["default"].weight.data = parts["lora_up.weight"].double()
    if dora:
        held = wrapped.lora_magnitude_vector["default"].weight
        parts["dora_scale"] = 3 + torch.randn(held.shape)
        held.data = parts["dora_scale"].double()
    ours = effect(layer, adapter_from(parts), 1.0, x)
    assert relative(ours, peft_effect(layer, wrapped, x)) < 1e-5


def test_oft_agrees_with_peft_on_the_transpose() -> None:
    """peft turns the inputs: x R Wt, so that W' = W Rt; ours is that of the transposed weight."""
    peft = pytest.importorskip("peft")
    layer, x = layer_for((12, 16), torch.float64), input_for((12, 16), torch.float64)
    config = peft.OFTConfig(
        r=0, oft_block_size=4, target_modules=["0"], use_cayley_neumann=False, init_weights=False
    )
    wrapped = peft_layer(layer, config)
    wrapped.double()
    upper = 0.2 * torch.randn(4, 6)
    wrapped.oft_R["default"].weight.data = upper.double()
    blocks = torch.zeros(4, 4, 4)
    rows, columns = torch.triu_indices(4, 4, 1)
    blocks[:, rows, columns] = upper
    weight = layer.weight.detach()
    change = adapter_from({"oft_blocks": blocks}).delta(weight.float().t().contiguous()).t()
    expected = peft_effect(layer, wrapped, x)
    assert relative(x @ change.double().t(), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension", "ignore:Setting boft")
def test_boft_of_one_stage_agrees_with_peft_on_the_transpose() -> None:
    """peft turns the inputs, halves Q, has the other sign and does not pair the halves."""
    peft = pytest.importorskip("peft")
    layer, x = layer_for((12, 16), torch.float32), input_for((12, 16), torch.float32)
    config = peft.BOFTConfig(
        boft_block_size=4, boft_n_butterfly_factor=1, target_modules=["0"], init_weights=False
    )
    wrapped = peft_layer(layer, config)
    wrapped.boft_s["default"].data.fill_(1)
    blocks = wrapped.boft_R["default"].detach()
    paired = [0, 2, 1, 3]  # the rows of a block in the order of our stage 0
    ours = adapter_from({"oft_blocks": -0.5 * blocks[:, :, paired][..., paired]})
    change = ours.delta(layer.weight.detach().t().contiguous()).t()
    assert relative(x @ change.t(), peft_effect(layer, wrapped, x)) < 1e-5


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("name", ["oft", "oft held", "oft 3x3"])
def test_oft_is_that_of_kohya(name: str, multiplier: float) -> None:
    """sd-scripts' OFTModule in its own steps, which has no package to take it from."""
    case = CASES[name]
    layer, x = layer_for(case.shape, torch.float32), input_for(case.shape, torch.float32)
    parts = case.parts()
    skew = parts["oft_blocks"] - parts["oft_blocks"].transpose(1, 2)
    norm = torch.norm(skew.flatten())
    held = torch.clamp(norm, max=parts["alpha"] * case.shape[0])
    skew = skew * ((held + 1e-8) / (norm + 1e-8))
    one = torch.eye(skew.shape[-1])
    turn = multiplier * ((one + skew) @ (one - skew).inverse() - one)
    weight = layer.weight.detach()
    cube = weight.reshape(len(skew), skew.shape[-1], -1)
    change = torch.einsum("knm,knp->kmp", turn, cube).reshape(weight.shape)
    before = layer(x)
    layer.weight.data = weight + change
    expected = (layer(x) - before).detach()
    layer.weight.data = weight
    assert relative(effect(layer, adapter_from(parts), multiplier, x), expected) < 1e-5
