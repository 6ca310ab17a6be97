"""Networks beside a layer: the same as merged, over steps and by picture, and no trace after."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.adapters import Adapter, Biased, Full, adapter_from
from extensions_lib.errors import NetworkProblem
from extensions_lib.patching import ActiveSet, Course, Wanted, together
from tests.adapters.cases import CASES
from tests.adapters.factors import FORMS, random_lora
from tests.patching.standin import Bits, Net, StandIn, network

BESIDE = Course(changes=10**9, forwards=1)  # a merge for so many changes costs more than anything
SAMPLES = 5
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(10, 12), (7, 10)),
    "no bias": (nn.Linear(10, 12, bias=False), (10,)),
    "conv 1x1": (nn.Conv2d(10, 12, 1), (10, 6, 5)),
    "conv 3x3": (nn.Conv2d(10, 12, 3, stride=2, padding=1), (10, 6, 5)),
    "tiling": (nn.Conv2d(10, 12, 3, padding=1, padding_mode="circular"), (10, 6, 5)),
}


class Model:
    """One layer as a model, "unet.layer"."""

    def __init__(self, layer: nn.Module) -> None:
        torch.manual_seed(1)
        self.tree = nn.Sequential(copy.deepcopy(layer))
        self.layers = {"unet.layer": SimpleNamespace(transposed=False)}

    @property
    def module(self) -> nn.Module:
        return self.tree[0]

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]:
        return self.module, "weight", None


def made(name: str) -> tuple[Model, Tensor]:
    layer, size = LAYERS[name]
    return Model(layer), torch.randn((SAMPLES, *size), generator=torch.Generator().manual_seed(3))


def shape_of(model: Model) -> tuple[int, ...]:
    return tuple(model.module.weight.shape)  # type: ignore[union-attr]


def net(number: int, adapter: Adapter) -> Any:
    return Net(f"net{number}", f"key{number}", {"unet.layer": adapter})


def lora(model: Model, number: int, rank: int = 4, **how: Any) -> Any:
    return net(number, random_lora(shape_of(model), rank, seed=number, **how))


def answer(model: Model, x: Tensor, wanted: list[Wanted]) -> Tensor:
    """What the layer answers with the set merged."""
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply(wanted)
    assert "forward" not in vars(model.module)
    with torch.no_grad():
        y: Tensor = model.tree(x)
    active.release()
    return y


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def is_beside(model: Model) -> bool:
    return "forward" in vars(model.module)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("grad", [False, True])
def test_beside_equals_merged(name: str, grad: bool) -> None:
    model, x = made(name)
    before = Bits(model.tree)
    nets = [lora(model, 1), lora(model, 2, rank=3, alpha=None), lora(model, 3, dtype=torch.float16)]
    if "3x3" in name:
        nets.append(lora(model, 4, tucker=True))
    active = ActiveSet(model)  # type: ignore[arg-type]
    for chosen, weights in ((nets[:1], [0.7]), (nets[:2], [0.5, 0.5]), (nets, [0.3, -0.8, 1, 0.2])):
        plain = [Wanted(each, unet=w) for each, w in zip(chosen, weights, strict=False)]
        beside = [Wanted(w.network, unet=w.unet, course=BESIDE) for w in plain]
        active.apply(beside)
        assert is_beside(model) and before.untouched()
        with torch.set_grad_enabled(grad):
            y = model.tree(x)
        active.clear()
        close(y.detach(), answer(model, x, plain))
    assert not is_beside(model) and before.untouched() and active.nbytes == 0


def test_the_form_of_one_layer_on_another() -> None:
    """A linear adapter on a 1x1 convolution, and the first ranks of one."""
    model, x = made("conv 1x1")
    both = [Wanted(net(1, random_lora((12, 10)))), Wanted(lora(model, 2), dyn=2)]
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply([Wanted(w.network, dyn=w.dyn, course=BESIDE) for w in both])
    assert is_beside(model)
    y = model.tree(x)
    active.clear()
    close(y.detach(), answer(model, x, both))


@pytest.mark.parametrize("name", LAYERS)
def test_a_change_of_the_bias_comes_along(name: str) -> None:
    model, x = made(name)
    nets = [
        net(1, Biased(random_lora(shape_of(model)), torch.randn(12))),
        net(2, Full(diff_b=torch.randn(12))),
        lora(model, 3),
    ]
    sets = [[0.5, 0.0, 1.0], [0.0, -0.7, 0.0], [1.0, 2.0, -1.0]]
    active = ActiveSet(model)  # type: ignore[arg-type]
    before = Bits(model.tree)
    for weights in sets:
        pairs = list(zip(nets, weights, strict=True))
        active.apply([Wanted(each, unet=w, course=BESIDE) for each, w in pairs])
        y = model.tree(x)
        close(y.detach(), answer_apart(name, x, [Wanted(each, unet=w) for each, w in pairs]))
    pictures = [[Wanted(each, unet=w) for each, w in zip(nets, s, strict=True)] for s in sets]
    active.apply(together(pictures))
    active.rows([2, 0, 1, 1, 0])
    y = model.tree(x)
    for sample, picture in enumerate([2, 0, 1, 1, 0]):
        alone = answer_apart(name, x[sample : sample + 1], pictures[picture])
        close(y[sample : sample + 1].detach(), alone)
    active.clear()
    assert before.untouched()


def answer_apart(name: str, x: Tensor, wanted: list[Wanted]) -> Tensor:
    return answer(made(name)[0], x, wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_a_schedule_changes_the_multipliers_alone(name: str) -> None:
    model, x = made(name)
    constant, changing, other = lora(model, 1), lora(model, 2), lora(model, 3)
    active = ActiveSet(model)  # type: ignore[arg-type]
    side = None
    for step, weight in enumerate([0.0, 0.25, 0.5, 0.25, 0.0, 1.0]):
        active.apply(
            [
                Wanted(constant, unet=0.6),
                Wanted(changing, unet=weight, course=BESIDE),
                Wanted(other, unet=1 - weight, course=BESIDE),
            ]
        )
        (_, path), *_ = active._unmerged._sides.values()
        assert side is None or path is side
        side = path
        down = None if side._made is None else side._made[0]
        with torch.inference_mode():
            y = model.tree(x)
        assert step == 0 or side._made[0] is down  # the factors were laid out once
        plain = [Wanted(constant, unet=0.6), Wanted(changing, unet=weight)]
        close(y.clone(), answer_apart(name, x, [*plain, Wanted(other, unet=1 - weight)]))
    active.clear()
    assert not is_beside(model)


@pytest.mark.parametrize("name", LAYERS)
def test_each_picture_has_its_networks(name: str) -> None:
    model, x = made(name)
    before = Bits(model.tree)
    one, two, shared = lora(model, 1), lora(model, 2, rank=2), lora(model, 3)
    pictures = [
        [Wanted(one, unet=0.8), Wanted(shared, unet=0.5)],
        [Wanted(two, unet=1.0), Wanted(shared, unet=0.5)],
        [Wanted(shared, unet=0.5), Wanted(one, unet=0.2), Wanted(two, unet=-0.5)],
    ]
    rows = [1, 0, 2, 2, 1]
    active = ActiveSet(model)  # type: ignore[arg-type]
    report = active.apply(together(pictures))
    assert is_beside(model) and report.unfit == []
    active.rows(rows)
    y = model.tree(x)
    active.rows([0])
    first = model.tree(x[:1])
    close(first.detach(), answer_apart(name, x[:1], pictures[0]))
    for sample, picture in enumerate(rows):
        alone = answer_apart(name, x[sample : sample + 1], pictures[picture])
        close(y[sample : sample + 1].detach(), alone)
    active.park()
    assert before.untouched() and not is_beside(model)
    active.apply(together(pictures))
    active.rows(rows)
    assert torch.equal(model.tree(x), y)
    active.clear()
    assert before.untouched()


DENSE = {
    name: case
    for name, case in CASES.items()
    if len(case.shape) > 1 and case.adapter().low_rank(case.shape) is None
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("schedule", [False, True])
def test_kinds_without_a_low_rank_form_are_computed_by_groups(name: str, schedule: bool) -> None:
    shape = DENSE[name].shape
    kind = nn.Linear if len(shape) == 2 else nn.Conv2d
    layer = kind(shape[1], shape[0], *shape[2:3])  # type: ignore[arg-type]
    size = (3, shape[1]) if len(shape) == 2 else (shape[1], 5, 4)
    model, x = Model(layer), torch.randn(SAMPLES, *size)
    before = Bits(model.tree)
    some, extra = net(1, DENSE[name].adapter()), lora(model, 2)
    rows = [0, 1, 2, 1, 0]
    active = ActiveSet(model)  # type: ignore[arg-type]
    for factor in (1.0, 0.5) if schedule else (1.0,):
        course = BESIDE if schedule else None
        pictures = [
            [Wanted(some, unet=0.8 * factor, course=course), Wanted(extra, unet=0.3)],
            [Wanted(extra, unet=0.3)],
            [Wanted(some, unet=-0.5 * factor, course=course)],
        ]
        assert active.apply(together(pictures)).unfit == []
        active.rows(rows)
        assert len(active._unmerged) == 1 and before.untouched()
        y = model.tree(x)
        for sample, picture in enumerate(rows):
            fresh = Model(layer)
            fresh.tree.load_state_dict(model.tree.state_dict())
            alone = answer(fresh, x[sample : sample + 1], pictures[picture])
            torch.testing.assert_close(y[sample : sample + 1].detach(), alone, rtol=1e-4, atol=1e-4)
        assert before.untouched()
    active.park()
    assert before.untouched()
    active.apply(together(pictures))
    active.rows(rows)
    assert torch.equal(model.tree(x), y)
    active.clear()
    assert before.untouched() and not is_beside(model)


def loha() -> Adapter:
    """Has no low-rank form."""
    draw = torch.Generator().manual_seed(9)
    sizes = {"hada_w1_a": (12, 2), "hada_w1_b": (2, 10), "hada_w2_a": (12, 2), "hada_w2_b": (2, 10)}
    parts = {key: torch.randn(size, generator=draw) * 0.3 for key, size in sizes.items()}
    return adapter_from(parts)


def test_one_set_merged_and_beside_and_back_leaves_no_trace() -> None:
    model, x = made("linear")
    before = Bits(model.tree)
    clean = model.tree(x)
    nets = [lora(model, 1), net(2, loha())]
    sets = [
        [Wanted(nets[0])],
        [Wanted(nets[0], course=BESIDE)],
        together([[Wanted(nets[0])], []]),
        together([[Wanted(nets[1])], [Wanted(nets[0])]]),
        [Wanted(nets[1]), Wanted(nets[0], course=BESIDE)],
        [],
    ]
    active = ActiveSet(model)  # type: ignore[arg-type]
    for first in sets:
        for second in sets:
            for leave in (active.park, active.clear, lambda: None):
                active.apply(first)
                leave()
                active.apply(second)
                active.rows([0, 1, 0, 1, 1])
                fresh = ActiveSet(Model(LAYERS["linear"][0]))  # type: ignore[arg-type]
                assert active._report.layers == fresh.apply(second).layers
                model.tree(x)
                fresh.release()
    active.release()
    assert before.untouched() and not is_beside(model)
    assert torch.equal(model.tree(x), clean) and active.nbytes == 0


@pytest.mark.parametrize("groups", [False, True])
def test_a_forward_that_fails_leaves_everything_as_it_was(groups: bool) -> None:
    model, x = made("linear")
    before = Bits(model.tree)
    network = net(1, loha()) if groups else lora(model, 1)
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply(together([[Wanted(network)], []]))
    active.rows([0, 1, 0, 1, 0])
    with pytest.raises(RuntimeError):
        model.tree(x[..., :4])
    assert before.untouched()
    active.rows([0, 1])
    with pytest.raises(NetworkProblem, match="one by one"):
        model.tree(x)
    active.clear()
    assert before.untouched() and not is_beside(model)


def test_samples_that_a_layer_has_split_keep_their_pictures() -> None:
    model, x = made("linear")
    pictures = [[Wanted(lora(model, 1))], [Wanted(lora(model, 2))]]
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply(together(pictures))
    active.rows([1, 0])
    y = model.tree(x[:4])
    active.clear()
    close(y[:2].detach(), answer(model, x[:2], pictures[1]))
    close(y[2:].detach(), answer(model, x[2:4], pictures[0]))


def test_half_precision_is_that_of_the_answer() -> None:
    model, x = made("conv 3x3")
    model.tree.bfloat16()
    wanted = [Wanted(lora(model, 1), unet=0.5)]
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply([Wanted(wanted[0].network, unet=0.5, course=BESIDE)])
    y = model.tree(x.bfloat16())
    assert y.dtype == torch.bfloat16
    active.clear()
    merged = answer(model, x.bfloat16(), wanted)
    assert (y.float() - merged.float()).abs().max() < 0.06 * merged.float().abs().max()


def test_a_weight_in_few_bits_keeps_the_network_out_of_its_rounding() -> None:
    """As AUTOMATIC1111's WebUI has it with fp8: the forward brings the weight to another type."""
    model, x = made("linear")
    stored = model.module.weight.detach().to(torch.float8_e4m3fn)  # type: ignore[union-attr]
    model.module.weight = nn.Parameter(stored, requires_grad=False)
    model.module.forward = lambda x: nn.functional.linear(  # type: ignore[method-assign]
        x,
        model.module.weight.float(),
        model.module.bias,  # type: ignore[operator, union-attr]
    )
    before, own = Bits(model.tree), model.module.forward
    network = lora(model, 1)
    delta = network.adapters["unet.layer"].delta(torch.zeros(12, 10))
    expected = model.module(x) + 0.01 * x @ delta.t()
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply([Wanted(network, unet=0.01)])
    assert before.untouched()
    close(model.module(x).detach(), expected.detach())
    active.clear()
    assert model.module.forward is own
    model.module.fp16_weight = stored.half()  # a finer copy is at hand: merged
    active.apply([Wanted(network, unet=0.01)])
    assert not before.untouched() and model.module.forward is own
    active.clear()


def test_a_forward_that_somebody_else_puts_around_ours_stays() -> None:
    model, x = made("linear")
    clean = model.tree(x)
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply([Wanted(lora(model, 1), course=BESIDE)])
    ours = model.module.forward
    theirs = model.module.forward = lambda x: ours(x) + 1  # type: ignore[method-assign]
    active.clear()
    assert model.module.forward is theirs
    assert torch.equal(model.tree(x), clean + 1)
    active.apply([Wanted(lora(model, 1), course=BESIDE)])
    active.clear()
    assert model.module.forward is theirs
    model.module.forward = ours  # as they restore it
    assert torch.equal(model.tree(x), clean)


def test_a_copy_of_the_model_has_a_side_path_of_its_own() -> None:
    model, x = made("linear")
    active = ActiveSet(model)  # type: ignore[arg-type]
    active.apply([Wanted(lora(model, 1), course=BESIDE)])
    y = model.tree(x)
    twin = copy.deepcopy(model.tree)
    active.clear()
    with torch.no_grad():
        assert torch.equal(twin(x), y)
        twin[0].weight.zero_()
        assert not torch.equal(twin(x), y) and not torch.equal(model.tree(x), y)


def test_a_step_looks_at_the_layers_of_changed_networks_alone() -> None:
    """Also where a network that changes on the UNet has parts of a fused weight of the encoder."""
    model, other = StandIn(), StandIn()
    nets, course = [network(1), network(2)], Course(changes=1, forwards=1)  # merged
    active = ActiveSet(model)

    def wanted(weight: float) -> list[Wanted]:
        return [Wanted(nets[0], 0.5, weight, course=course), Wanted(nets[1], 0.3, 0.4)]

    active.apply(wanted(1.0))
    for weight in (0.5, 0.0, 0.7):
        active.change(wanted(weight))
        assert active._report.changed == 3  # layers of the UNet
        fresh = ActiveSet(other)
        fresh.apply(wanted(weight))
        for name in model.layers:
            assert torch.equal(model.weight(name), other.weight(name)), name
        fresh.release()
    active.clear()


def test_every_kind_that_has_a_low_rank_form_is_known_here() -> None:
    kinds = {
        case.adapter().kind
        for case in CASES.values()
        if case.adapter().low_rank(case.shape) is not None
    }
    assert kinds == {"lora"} and set(FORMS) == {"linear", "conv 1x1", "conv 3x3", "tucker"}
