"""Originals on a device with little room: they wait elsewhere and come back to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extensions_lib.patching import ActiveSet, Wanted
from extensions_lib.patching.room import GB, RESERVE, Room, from_gigabytes, pinned, spare
from tests.patching.standin import Bits, StandIn, network

NETS = [network(0), network(1), network(2, ["unet.linear", "te2.v"])]
ALL = sum(
    each.nbytes
    for name, each in StandIn().tree.named_parameters()
    if name.endswith(("weight", "projection"))
)


class Device:
    """Some memory, and what a model keeps of it: originals that are aside do not count."""

    def __init__(self, size: int, model: StandIn) -> None:
        self.size, self.model = size, model
        self.aside: list[Tensor] = []

    def spare(self, _: torch.device) -> int:
        return self.size + sum(each.nbytes for each in self.aside) - ALL

    def take(self, tensor: Tensor) -> Tensor:
        self.aside.append(tensor.clone())
        return self.aside[-1]


def room(limit: int | None, device: Device) -> Room:
    return Room(lambda: limit, device.spare, device.take)


def bits(model: StandIn) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.tree.named_parameters()}


def expected(wanted: list[Wanted], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    fresh = StandIn(dtype)
    ActiveSet(fresh).apply(wanted)
    return bits(fresh)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("limit", [0, 700, ALL, None])
@pytest.mark.parametrize("half", [False, True])
def test_a_history_is_the_same_wherever_originals_lie(limit: int | None, half: bool) -> None:
    dtype = torch.float16 if half else torch.float32
    model = StandIn(dtype)
    before = Bits(model.tree)
    device = Device(ALL - 500, model)
    active = ActiveSet(model, room(limit, device))
    sets = [
        [Wanted(NETS[0])],
        [Wanted(NETS[0], 0.5, 0.3)],
        [Wanted(NETS[1]), Wanted(NETS[0], 0.5, 0.3)],
        [Wanted(NETS[2])],
        [Wanted(NETS[1], 0.2, 0.2)],
    ]
    for wanted in sets:
        active.apply(wanted)
        assert same(bits(model), expected(wanted, dtype))
        assert before.bases_untouched()
    active.park()
    assert before.untouched()
    active.apply(sets[0])
    assert same(bits(model), expected(sets[0], dtype))
    active.clear()
    assert before.untouched()
    assert bool(device.aside) == (limit != ALL)
    active.release()
    assert active.nbytes == 0


def waiting(active: ActiveSet) -> list[Tensor]:
    return [each.original for each in active._attached.values() if each.aside]


def test_a_limit_counts_what_stays() -> None:
    model = StandIn()
    active = ActiveSet(model, room(700, Device(0, model)))
    for net in (NETS[0], NETS[2], NETS[1]):
        active.apply([Wanted(net)])
        stays = [each.original for each in active._attached.values() if not each.aside]
        assert 0 < sum(each.nbytes for each in stays) <= 700
    assert waiting(active)
    active.clear()
    active.apply([Wanted(NETS[2])])
    assert [each.aside for each in active._attached.values()] == [False, True]


def test_automatically_as_many_stay_as_there_is_room_for() -> None:
    model = StandIn()
    for short in (0, 1, 1000, ALL):
        device = Device(ALL - short, model)
        active = ActiveSet(model, room(None, device))
        active.apply([Wanted(NETS[0])])
        aside = sum(each.nbytes for each in waiting(active))
        largest = max(each.nbytes for each in model.tree.parameters())
        assert short <= aside < short + largest
        active.release()


def test_coming_back_takes_the_merged_weight_s_own_memory() -> None:
    model = StandIn()
    active = ActiveSet(model, room(0, Device(0, model)))
    active.apply([Wanted(NETS[0])])
    merged = model.tree.linear.weight
    place = merged.data_ptr()
    active.clear()
    assert model.tree.linear.weight is not merged
    assert model.tree.linear.weight.data_ptr() == place
    assert active.nbytes == 0


def test_a_weight_that_has_no_place_anywhere_fails_the_set_and_nothing_else() -> None:
    model = StandIn()
    before = Bits(model.tree)
    calls: list[int] = []

    def full(tensor: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no host memory")
        return tensor.clone()

    active = ActiveSet(model, Room(lambda: 0, lambda _: 0, full))
    with pytest.raises(RuntimeError, match="no host memory"):
        active.apply([Wanted(NETS[0])])
    assert before.untouched()
    active.apply([Wanted(NETS[0])])
    assert same(bits(model), expected([Wanted(NETS[0])]))
    active.clear()
    assert before.untouched()


def test_originals_that_are_aside_follow_a_model_that_the_host_converts() -> None:
    model = StandIn()
    before = Bits(model.tree)
    active = ActiveSet(model, room(0, Device(0, model)))
    active.apply([Wanted(NETS[0])])
    model.tree.half()
    active.apply([Wanted(NETS[0], 0.5, 0.5)])
    halves = StandIn(torch.float16)
    ActiveSet(halves).apply([Wanted(NETS[0], 0.5, 0.5)])
    assert torch.equal(model.tree.linear.weight, halves.tree.linear.weight)
    active.clear()
    for name, parameter in model.tree.named_parameters():
        assert parameter is before.objects[name]
        assert torch.equal(parameter, before.values[name].half())


def test_a_device_with_room_is_asked_once_for_a_set() -> None:
    """And anew for the next, since a picture has been made in between."""
    model = StandIn()
    answers = [100 * ALL, -1, -1, 100 * ALL]
    asked: list[int] = []

    def spare(_: torch.device) -> int:
        asked.append(1)
        return answers[min(len(asked), len(answers)) - 1]

    active = ActiveSet(model, Room(lambda: None, spare, lambda tensor: tensor.clone()))
    active.apply([Wanted(NETS[2])])
    assert len(asked) == 1 and not waiting(active)
    active.clear()
    active.apply([Wanted(NETS[0])])
    assert len(asked) == 4 and len(waiting(active)) == 2
    active.release()


def test_a_cpu_has_no_other_memory() -> None:
    assert spare(torch.device("cpu")) is None
    model = StandIn()
    active = ActiveSet(model, Room(lambda: 0))
    active.apply([Wanted(NETS[0])])
    assert not waiting(active)


def test_a_limit_in_gigabytes() -> None:
    assert from_gigabytes(None) is None and from_gigabytes(-1) is None
    assert from_gigabytes(0) == 0 and from_gigabytes(1.5) == 3 * GB // 2


@pytest.mark.gpu
def test_on_a_device() -> None:
    model = StandIn(torch.float16)
    model.tree.cuda()
    before = Bits(model.tree)
    device = torch.device("cuda")
    assert spare(device) <= torch.cuda.mem_get_info(device)[0] and RESERVE > 0
    wanted = [Wanted(NETS[0], 0.5, 0.7)]
    found = []
    for limit in (0, None):
        active = ActiveSet(model, Room(lambda limit=limit: limit))
        active.apply(wanted)
        assert all(each.is_cuda for each in model.tree.parameters())
        lying = {each.device.type for each in before.objects.values()}
        assert ("cpu" in lying) == (limit == 0)
        assert all(each.is_pinned() for each in waiting(active))
        found.append(bits(model))
        active.apply([Wanted(NETS[1])])
        active.clear()
        assert before.untouched()
    assert same(*found)
    assert pinned(model.tree.linear.weight).is_pinned()
