"""Networks on a model on a GPU: the bits that come back, and the answers of a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.adapters import Adapter, DoRA, LoHa
from extensions_lib.patching import ActiveSet, Course, Wanted, together
from extensions_lib.patching.room import Room
from tests.adapters.factors import random_lora
from tests.patching.standin import Bits, Net, StandIn, network

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
BESIDE = Course(changes=10**9, forwards=1)  # merging so often costs more than anything
HALVES = [torch.float16, torch.bfloat16]
INPUTS = {"linear": (7, 10), "conv": (6, 5, 4)}
ROWS = [2, 0, 1, 1, 0]


def on_device(dtype: torch.dtype = torch.float32) -> StandIn:
    model = StandIn(dtype)
    model.tree.to(DEVICE)
    return model


def loha(shape: tuple[int, ...], seed: int) -> LoHa:
    draw = torch.Generator().manual_seed(seed)
    made = LoHa.fresh(shape, 3, 3.0, generator=draw)
    made.w2_a = 0.3 * torch.randn(made.w2_a.shape, generator=draw)
    return made


def mixed(seed: int) -> Net:
    """On the CPU, as read from a file; kinds with and without a low-rank form."""
    adapters: dict[str, Adapter] = {}
    weights = StandIn()
    for number, (name, place) in enumerate(StandIn.PLACES.items()):
        shape = place[4]
        kind = (number + seed) % 3
        lora = random_lora(shape, seed=seed + number)
        dora = DoRA.fresh(lora, weights.weight(name))
        adapters[name] = (lora, loha(shape, seed + number), dora)[kind]
    return Net(f"mixed{seed}", f"mixed{seed}", adapters)


NETS = [network(0), mixed(1), mixed(2)]
SETS = [
    [Wanted(NETS[0], 0.8, 0.8)],
    [Wanted(NETS[0], 0.5, 0.3)],
    [Wanted(each, 0.5, 0.4) for each in NETS],
    [*(Wanted(each, 0.5, 0.4) for each in NETS[:2]), Wanted(NETS[2], 0.1, -0.2)],
    [Wanted(NETS[2], 1.0, 1.0)],
]


def bits(model: StandIn) -> dict[str, Tensor]:
    return {name: each.detach().cpu().clone() for name, each in model.tree.named_parameters()}


def on_cpu(wanted: list[Wanted], dtype: torch.dtype) -> dict[str, Tensor]:
    model = StandIn(dtype)
    ActiveSet(model).apply(wanted)
    return bits(model)


def alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """But for the last place."""
    for name, each in wanted.items():
        eps = torch.finfo(each.dtype).eps
        atol = 1e-5 * float(each.abs().max())
        torch.testing.assert_close(found[name], each, rtol=eps, atol=atol)


@pytest.mark.parametrize("limit", [None, 700, 0])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_applied_changed_and_removed(dtype: torch.dtype, limit: int | None) -> None:
    """The set in force is a CPU's, and every bit of the base comes back, wherever it waited."""
    model = on_device(dtype)
    before = Bits(model.tree)
    active = ActiveSet(model, Room(lambda: limit))
    for wanted in SETS:
        active.apply(wanted)
        alike(bits(model), on_cpu(wanted, dtype))
        assert all(each.device.type == DEVICE.type for each in model.tree.parameters())
        waiting = [each.original for each in active._attached.values() if each.aside]
        assert bool(waiting) == (limit is not None)
        assert all(each.is_pinned() for each in waiting)
        now = {name: each.detach().to(DEVICE) for name, each in before.objects.items()}
        assert all(torch.equal(now[name], each) for name, each in before.values.items())
    in_force = bits(model)
    active.park()
    assert before.untouched()
    active.apply(SETS[-1])
    again = bits(model)
    assert all(torch.equal(again[name], each) for name, each in in_force.items())
    active.clear()
    assert before.untouched()
    for each in NETS:  # the networks' own tensors stay where they are
        assert all(
            t.device.type == "cpu" for a in each.adapters.values() for t in a._held().values()
        )


def test_a_failure_leaves_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_device(torch.float16)
    before = Bits(model.tree)
    active = ActiveSet(model)
    active.apply(SETS[0])

    def broken(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(LoHa, "_add", broken)
        with pytest.raises(torch.OutOfMemoryError):
            active.apply(SETS[2])
    assert before.untouched()
    active.apply(SETS[2])
    alike(bits(model), on_cpu(SETS[2], torch.float16))
    active.release()
    assert before.untouched() and active.nbytes == 0


def test_a_large_network_out_of_host_memory() -> None:
    """What is copied while more is asked for arrives whole."""
    shape = (2048, 1024)
    model = StandIn(torch.float16)
    model.tree.linear = torch.nn.Linear(shape[1], shape[0], dtype=torch.float16, device=DEVICE)
    net = Net("large", "large", {"unet.linear": random_lora(shape, 64, seed=5)})
    before = Bits(model.tree)
    active = ActiveSet(model)
    active.apply([Wanted(net, unet=0.1)])
    adapter = net.adapters["unet.linear"]
    held = adapter._held()  # type: ignore[attr-defined]
    clean = before.values["linear.weight"].double()
    wanted = clean + 0.1 * adapter.scale * (held["up"].to(clean) @ held["down"].to(clean))
    found = model.tree.linear.weight.detach().double()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    active.release()
    assert before.untouched()


def answers(model: StandIn, wanted: list[Wanted], at: torch.device) -> dict[str, Tensor]:
    """Of the layers in INPUTS, the set in force for the samples in ROWS."""
    draw = torch.Generator().manual_seed(8)
    given = {name: torch.randn(len(ROWS), *size, generator=draw) for name, size in INPUTS.items()}
    active = ActiveSet(model)
    before = Bits(model.tree)
    active.apply(wanted)
    active.rows(ROWS)
    assert all("forward" in vars(getattr(model.tree, name)) for name in INPUTS)
    with torch.no_grad():
        found = {name: getattr(model.tree, name)(x.to(at)).cpu() for name, x in given.items()}
    active.release()
    assert before.untouched()
    return found


LAYERS = [f"unet.{name}" for name in INPUTS]
LOHAS = [
    Net(f"h{n}", f"h{n}", {name: loha(StandIn.PLACES[name][4], n) for name in LAYERS})
    for n in range(2)
]
LORAS = [network(n, LAYERS) for n in range(3)]
WAYS = {
    "beside": [Wanted(each, unet=0.3 * n - 0.4, course=BESIDE) for n, each in enumerate(LORAS)],
    "beside, for each": together(
        [[Wanted(LORAS[0], unet=0.8)], [Wanted(LORAS[1], unet=-0.5)], [Wanted(LORAS[2])]]
    ),
    "by group": together([[Wanted(LOHAS[0], unet=0.8)], [], [Wanted(e) for e in LOHAS]]),
}


@pytest.mark.parametrize("way", WAYS)
def test_unmerged_as_on_a_cpu(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    wanted = answers(StandIn(), WAYS[way], torch.device("cpu"))
    found = answers(on_device(), WAYS[way], DEVICE)
    for name, each in wanted.items():
        assert float((found[name] - each).abs().max()) <= 1e-4 * float(each.abs().max())
