"""Adapters in training: the same answer as merged, gradients to them alone, no trace afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from extensions_lib.adapters import BOFT, IA3, OFT, Adapter, DoRA, Full, GLoRA, LoHa, LoKr, LoRA
from extensions_lib.adapters.base import AdapterError
from extensions_lib.patching import ActiveSet, Wanted
from extensions_lib.patching.in_training import Dropouts, InTraining
from tests.adapters.factors import random_lora
from tests.patching.standin import Bits, Net, StandIn, network

LAYERS = ("unet.linear", "unet.conv")


def answers(model: StandIn, seed: int = 0) -> list[torch.Tensor]:
    """What every module that is called says to random input."""
    drawn = torch.Generator().manual_seed(seed)
    dtype = model.tree.linear.weight.dtype
    x, image, sequence = (
        torch.randn(size, generator=drawn, dtype=torch.float64).to(dtype)
        for size in ((3, 10), (2, 6, 7, 5), (4, 2, 8))
    )
    tree = model.tree
    said = [tree.linear(x), tree.other(x), tree.conv(image), tree.text(x)]
    return [*said, tree.fused(sequence, sequence, sequence)[0]]


def shaken(adapter: Adapter, seed: int = 5) -> Adapter:
    """As if it had learnt something."""
    drawn = torch.Generator().manual_seed(seed)
    for tensor in adapter.parameters().values():
        noise = torch.randn(tensor.shape, generator=drawn, dtype=torch.float64)
        tensor.data = tensor + 0.1 * noise.to(tensor.dtype)
    return adapter


def fresh(kind: str, model: StandIn) -> dict[str, Adapter]:
    made: dict[str, Adapter] = {}
    for name in LAYERS:
        base = model.weight(name)
        drawn = torch.Generator().manual_seed(len(name))
        if kind == "dora":
            made[name] = DoRA.fresh(LoRA.fresh(base.shape, 3, 2.0, generator=drawn), base)
            continue
        options = {"tucker": {"tucker": True}, "full": {"bias": True}}.get(kind, {})
        sort = KINDS[kind]
        rank = {"full": None, "ia3": None, "boft": 6}.get(kind, 2)
        made[name] = sort.fresh(base.shape, rank, 2.0, generator=drawn, **options)
    return {name: shaken(each) for name, each in made.items()}


KINDS = {
    "lora": LoRA,
    "tucker": LoRA,
    "loha": LoHa,
    "lokr": LoKr,
    "glora": GLoRA,
    "oft": OFT,
    "boft": BOFT,
    "ia3": IA3,
    "full": Full,
    "dora": DoRA,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_that_of_merged_weights(kind: str) -> None:
    model = StandIn(torch.float64)
    bits = Bits(model.tree)
    adapters = fresh(kind, model)
    trained = InTraining(model, adapters)
    for multiplier in (1.0, 0.3, -0.7):
        merged = ActiveSet(model)
        merged.apply([Wanted(Net("n", "n", adapters), multiplier, multiplier)])
        expected = answers(model)
        merged.release()
        trained.put_in()
        trained.multiplier = multiplier
        for one, other in zip(answers(model), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        trained.take_out()
    assert bits.untouched()


def test_every_way_a_weight_can_lie_in_a_model() -> None:
    model, net = StandIn(), network(1)
    plain = answers(model)
    merged = ActiveSet(model)
    merged.apply([Wanted(net)])
    expected = answers(model)
    project = model.tree.project.text_projection.detach().clone()
    merged.release()
    bits = Bits(model.tree)
    trained = InTraining(model, net.adapters)
    trained.put_in()
    found = answers(model)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(found, plain, strict=True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # A bare parameter has no forward of its own; its module's forward is what goes through.
    model.tree.project.forward = lambda: model.tree.project.text_projection
    trained.take_out()
    trained = InTraining(model, net.adapters)
    trained.put_in()
    torch.testing.assert_close(model.tree.project(), project, rtol=1e-5, atol=1e-5)
    trained.take_out()
    assert bits.untouched()
    assert all(torch.equal(a, b) for a, b in zip(answers(model), plain, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_formula(kind: str) -> None:
    model = StandIn(torch.float64)
    for parameter in model.tree.parameters():
        parameter.requires_grad_(False)
    adapters = fresh(kind, model)
    trained = InTraining(model, adapters)
    parts = [each.data.double().requires_grad_() for each in trained.parameters().values()]
    rebuilt: dict[str, Adapter] = {}
    at = iter(parts)
    for name, adapter in adapters.items():
        tensors = {**adapter.tensors(), **{part: next(at) for part in adapter.parameters()}}
        rebuilt[name] = type(adapter).from_tensors(tensors)
    trained = InTraining(model, rebuilt)
    assert [id(each) for each in trained.parameters().values()] == [id(each) for each in parts]
    x = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)
    image = torch.randn(1, 6, 3, 3, dtype=torch.float64, requires_grad=True)

    def said(x: torch.Tensor, image: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.cat([model.tree.linear(x).flatten(), model.tree.conv(image).flatten()])

    trained.put_in()
    assert torch.autograd.gradcheck(said, (x, image, *parts), fast_mode=True)
    said(x, image).square().sum().backward()
    assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in parts)
    assert all(each.grad is None for each in model.tree.parameters())
    trained.take_out()


def test_half_precision_models_learn_in_full_precision() -> None:
    model = StandIn(torch.bfloat16)
    adapters = fresh("lora", model) | {"te1.text": shaken(LoHa.fresh((12, 10), 2))}
    trained = InTraining(model, adapters)
    for each in trained.parameters().values():
        each.requires_grad_()
    trained.put_in()
    said = answers(model)
    assert said[0].dtype == torch.bfloat16
    torch.stack([each.float().sum() for each in said]).sum().backward()
    trained.take_out()
    assert {each.dtype for each in trained.parameters().values()} == {torch.float32}
    assert all(each.grad is not None for each in trained.parameters().values())


def test_multiplier_zero_is_the_base_model_to_the_bit() -> None:
    model = StandIn()
    plain = answers(model)
    trained = InTraining(model, fresh("lora", model) | {"te1.text": shaken(Full.fresh((12, 10)))})
    trained.put_in()
    trained.multiplier = 0
    assert all(torch.equal(a, b) for a, b in zip(answers(model), plain, strict=True))
    trained.take_out()


def test_an_error_in_a_forward_leaves_the_parameters_in_place() -> None:
    model = StandIn()
    bits = Bits(model.tree)
    trained = InTraining(model, {"unet.linear": shaken(Full.fresh((12, 10)))})
    trained.put_in()
    with pytest.raises(RuntimeError):
        model.tree.linear(torch.ones(3, 11))
    trained.take_out()
    assert bits.untouched()
    assert "forward" not in vars(model.tree.linear)


@pytest.mark.parametrize("which", ["values", "rank", "module"])
def test_dropouts_leave_out_at_random_and_on_average_nothing(which: str) -> None:
    model = StandIn()
    plain = model.tree.linear(torch.ones(1, 10))
    adapters = {"unet.linear": random_lora((12, 10), seed=1)}
    whole = InTraining(model, adapters)
    whole.put_in()
    x = torch.ones(400, 10)
    full = model.tree.linear(x)
    whole.take_out()
    trained = InTraining(model, adapters, dropouts=Dropouts(**{which: 0.5}))
    trained.put_in()
    torch.manual_seed(0)
    several = [model.tree.linear(x) for _ in range(60)]
    torch.manual_seed(0)
    assert torch.equal(model.tree.linear(x), several[0])
    trained.dropping = False
    torch.testing.assert_close(model.tree.linear(x), full)
    trained.take_out()
    mean = torch.stack(several).mean((0, 1))
    expected = (full[0] + plain[0]) / 2 if which == "module" else full[0]
    spread = torch.stack(several).std((0, 1)).mean()
    assert spread > 0.05
    tolerance = 0.25 if which == "module" else 0.1
    assert (mean - expected).abs().max() < tolerance * (full - plain).abs().max()


def test_rank_dropout_of_other_kinds_leaves_rows_alone() -> None:
    model = StandIn()
    trained = InTraining(
        model, {"unet.linear": shaken(Full.fresh((12, 10)))}, dropouts=Dropouts(rank=0.5)
    )
    x = torch.ones(1, 10)
    plain = model.tree.linear(x)
    trained.put_in()
    torch.manual_seed(1)
    same = (model.tree.linear(x) == plain).sum().item()
    trained.take_out()
    assert 0 < same < 12


def test_blocks_of_ranks_learn_one_at_a_time() -> None:
    model = StandIn()
    for parameter in model.tree.parameters():
        parameter.requires_grad_(False)
    adapter = random_lora((12, 10), rank=6, seed=1)
    trained = InTraining(model, {"unet.linear": adapter}, unit=2)
    up, down = adapter.up.requires_grad_(), adapter.down.requires_grad_()
    trained.put_in()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        up.grad = down.grad = None
        model.tree.linear(torch.ones(1, 10)).sum().backward()
        learnt = up.grad.abs().sum(0).nonzero().flatten().tolist()
        assert learnt == down.grad.abs().sum(1).nonzero().flatten().tolist()
        assert learnt[0] % 2 == 0 and learnt == [learnt[0], learnt[0] + 1]
        seen.add(learnt[0])
    trained.take_out()
    assert seen == {0, 2, 4}


def test_gradient_checkpointing_draws_the_same_again() -> None:
    model = StandIn()
    adapter = random_lora((12, 10), seed=1)
    trained = InTraining(
        model, {"unet.linear": adapter}, dropouts=Dropouts(values=0.3, rank=0.3, module=0.3)
    )
    up = adapter.up.requires_grad_()
    trained.put_in()
    x, grads = torch.ones(5, 10, requires_grad=True), []
    for wrapped in (False, True):
        torch.manual_seed(4)
        up.grad = None
        if wrapped:
            said = torch.utils.checkpoint.checkpoint(model.tree.linear, x, use_reentrant=False)
        else:
            said = model.tree.linear(x)
        said.square().sum().backward()
        grads.append(up.grad)
    trained.take_out()
    assert torch.equal(*grads)


def test_what_does_not_fit_is_named() -> None:
    model = StandIn()
    with pytest.raises(AdapterError, match=r"unet\.linear: expected \[12, 10\]"):
        InTraining(model, {"unet.linear": random_lora((12, 11), seed=1)})
    with pytest.raises(AdapterError, match=r"unet\.nowhere: the model has no such layer"):
        InTraining(model, {"unet.nowhere": random_lora((12, 10), seed=1)})


def test_it_is_a_module_like_any_other_to_torch() -> None:
    """The host's own modules keep their class, their state dict and their hooks."""
    model = StandIn()
    names = list(model.tree.state_dict())
    called = []
    handle = model.tree.linear.register_forward_hook(lambda *_: called.append(1))
    trained = InTraining(model, fresh("lora", model))
    trained.put_in()
    assert type(model.tree.linear) is nn.Linear and list(model.tree.state_dict()) == names
    model.tree.linear(torch.ones(1, 10))
    assert called == [1]
    handle.remove()
    trained.take_out()
