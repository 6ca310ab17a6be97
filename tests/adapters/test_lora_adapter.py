"""LoRA and LoCon: against peft, lycoris-lora and the formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from extensions_lib.adapters import AdapterError, LoRA, adapter_from, merged
from extensions_lib.adapters.lora import PARTS
from tests.adapters.factors import FORMS, exact, random_lora


def layer_for(shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(1)
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2], padding=shape[2] // 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [None, 1.0, 4.0, 6.5])
def test_delta_is_the_definition(form: str, alpha: float | None) -> None:
    shape, tucker = FORMS[form]
    lora = random_lora(shape, alpha=alpha, tucker=tucker)
    change = lora.delta(torch.zeros(shape))
    assert change.dtype == torch.float32
    assert change.shape == shape
    torch.testing.assert_close(change.double(), exact(lora), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_the_forward_of_lycoris(form: str) -> None:
    locon = pytest.importorskip("lycoris.modules.locon")
    shape, tucker = FORMS[form]
    layer = layer_for(shape)
    theirs = locon.LoConModule(
        "layer", layer, multiplier=0.7, lora_dim=4, alpha=2.0, use_tucker=tucker
    )
    ours = random_lora(shape, tucker=tucker)
    theirs.lora_up.weight.data.copy_(ours.up)
    theirs.lora_down.weight.data.copy_(ours.down)
    if tucker:
        assert ours.mid is not None
        theirs.lora_mid.weight.data.copy_(ours.mid)
    x = torch.randn(3, shape[1], *([5, 5] if len(shape) == 4 else []))
    expected = theirs(x)
    before = layer(x)
    layer.weight.data = merged(layer.weight, [(ours, 0.7)])
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert (expected - before).abs().max() > 0.01


@pytest.mark.parametrize("form", ["linear", "conv 1x1", "conv 3x3"])
def test_agrees_with_the_merge_of_peft(form: str) -> None:
    peft = pytest.importorskip("peft")
    shape, _ = FORMS[form]
    layer = layer_for(shape)
    clean = layer.weight.detach().clone()
    config = peft.LoraConfig(r=4, lora_alpha=2.0, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(layer), config)
    wrapped = model.base_model.model[0]
    ours = random_lora(shape)
    wrapped.lora_A["default"].weight.data.copy_(ours.down)
    wrapped.lora_B["default"].weight.data.copy_(ours.up)
    change = wrapped.get_delta_weight("default")
    torch.testing.assert_close(ours.delta(clean), change, rtol=1e-5, atol=1e-6)
    model.merge_adapter()
    torch.testing.assert_close(merged(clean, [(ours, 1.0)]), wrapped.base_layer.weight)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow_through_delta_and_merge(form: str) -> None:
    shape, tucker = FORMS[form]
    lora = random_lora(shape, rank=2, tucker=tucker, dtype=torch.float64)
    base = torch.randn(shape, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (lora.up, lora.down, lora.mid) if t is not None]

    def rebuilt(*parts: torch.Tensor) -> LoRA:
        return LoRA(parts[0], parts[1], parts[2] if tucker else None, 1.0)

    assert torch.autograd.gradcheck(lambda *p: rebuilt(*p).delta(base), tensors)
    assert torch.autograd.gradcheck(lambda *p: merged(base, [(rebuilt(*p), 0.5)]), tensors)
    assert rebuilt(*tensors).delta(base).dtype == torch.float64


@pytest.mark.parametrize("form", FORMS)
def test_parts_come_back_as_they_were(form: str) -> None:
    shape, tucker = FORMS[form]
    lora = random_lora(shape, tucker=tucker, dtype=torch.float16)
    again = adapter_from(lora.tensors())
    assert isinstance(again, LoRA)
    assert again.tensors().keys() == lora.tensors().keys()
    assert all(torch.equal(again.tensors()[name], part) for name, part in lora.tensors().items())
    assert again.kind == "lora"
    assert again.rank == 4
    assert again.shape == shape


def test_missing_alpha_is_scale_one_and_stays_missing() -> None:
    lora = random_lora((4, 4), alpha=None)
    assert "alpha" not in lora.tensors()
    assert lora.scale == 1


def test_stored_scale_overrides_alpha() -> None:
    parts = random_lora((4, 4), alpha=1.0).tensors() | {"scale": torch.tensor(3.0)}
    assert LoRA.from_tensors(parts).scale == 3


def test_linear_fits_a_1x1_convolution_and_the_reverse() -> None:
    linear, conv = random_lora((6, 5)), random_lora((6, 5, 1, 1))
    base = torch.zeros(6, 5)
    assert torch.equal(linear.delta(base[..., None, None])[..., 0, 0], linear.delta(base))
    assert torch.equal(conv.delta(base), conv.delta(base[..., None, None])[..., 0, 0])


@pytest.mark.parametrize("tucker", [False, True])
def test_inpainting_leaves_the_five_new_channels_alone(tucker: bool) -> None:
    lora = random_lora((8, 4, 3, 3), tucker=tucker)
    base = torch.randn(8, 9, 3, 3)
    change = lora.delta(base)
    assert torch.equal(change[:, :4], lora.delta(torch.zeros(8, 4, 3, 3)))
    assert not change[:, 4:].any()
    result = merged(base, [(lora, 1.0)])
    assert torch.equal(result[:, 4:], base[:, 4:])
    assert not torch.equal(result[:, :4], base[:, :4])


@pytest.mark.parametrize(
    "base",
    [(12, 11), (13, 10), (10, 12), (12, 90), (12, 10, 3, 3), (12,), (12, 9)],
)
def test_a_shape_that_does_not_fit_is_refused(base: tuple[int, ...]) -> None:
    lora = random_lora((12, 10))
    assert lora.misfit(base) == f"expected {list(base)}, found [12, 10]"
    with pytest.raises(AdapterError, match="expected"):
        lora.delta(torch.zeros(base))


def test_the_kernel_must_fit_too() -> None:
    assert random_lora((12, 10, 3, 3)).misfit((12, 90))
    assert random_lora((12, 10, 3, 3)).misfit((12, 10, 5, 5))
    assert random_lora((12, 4)).misfit((12, 9, 3, 3))


def test_dyn_keeps_the_first_ranks_at_the_full_scale() -> None:
    lora = random_lora((6, 5), rank=4, alpha=2.0)
    cut = lora.first_ranks(2)
    assert cut.rank == 2
    assert cut.scale == lora.scale
    expected = 0.5 * lora.up[:, :2] @ lora.down[:2]
    torch.testing.assert_close(cut.delta(torch.zeros(6, 5)), expected)
    assert lora.first_ranks(9) is lora
    with pytest.raises(AdapterError, match="at least 1"):
        lora.first_ranks(0)


def test_dyn_of_tucker_cuts_the_core() -> None:
    lora = random_lora((6, 5, 3, 3), tucker=True)
    assert lora.mid is not None
    cut = lora.first_ranks(3)
    expected = exact(LoRA(lora.up[:, :3], lora.down[:3], lora.mid[:3, :3], 1.5))
    torch.testing.assert_close(cut.delta(torch.zeros(6, 5, 3, 3)).double(), expected)


UP, DOWN, MID = PARTS["up"], PARTS["down"], PARTS["mid"]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({UP: (6, 4), DOWN: (3, 5)}, "ranks do not agree"),
        ({UP: (6, 4, 3, 3), DOWN: (4, 5)}, UP),
        ({UP: (6, 4), DOWN: (4, 5, 2)}, DOWN),
        ({UP: (6,), DOWN: (1, 5)}, UP),
        ({UP: (6, 0), DOWN: (0, 5)}, "not empty"),
        ({UP: (6, 4), DOWN: (4, 5), MID: (4, 3, 3, 3)}, "lora_mid"),
        ({UP: (6, 4), DOWN: (4, 5, 3, 3), MID: (4, 4, 3, 3)}, DOWN),
        ({UP: (6, 4), DOWN: (4, 5), "alpha": (2,)}, "alpha"),
        ({UP: (6, 4), DOWN: (4, 5), "hada_t1": (6, 1)}, "hada_t1"),
    ],
)
def test_parts_that_make_no_lora_are_refused(parts: dict[str, tuple], says: str) -> None:
    with pytest.raises(AdapterError, match=says):
        adapter_from({name: torch.ones(shape) for name, shape in parts.items()})


def test_unknown_parts_are_named() -> None:
    with pytest.raises(AdapterError, match=r"hada_w1_a"):
        adapter_from({"hada_w1_a": torch.ones(2)})
    with pytest.raises(AdapterError, match=UP):
        LoRA.from_tensors({DOWN: torch.ones(2, 2)})


def test_a_fresh_one_changes_nothing_yet() -> None:
    for shape, tucker in FORMS.values():
        lora = LoRA.fresh(shape, 3, 1.0, tucker=tucker)
        assert not lora.delta(torch.ones(shape)).any()
        assert lora.down.any()
        assert (lora.mid is not None) == tucker


def test_to_moves_all_of_it() -> None:
    lora = random_lora((6, 5, 3, 3), tucker=True)
    assert lora.to("cpu") is lora
    moved = lora.to("meta")
    assert {part.device.type for n, part in moved.tensors().items() if n != "alpha"} == {"meta"}
    assert moved.alpha == lora.alpha
