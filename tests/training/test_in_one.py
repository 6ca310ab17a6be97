"""Tensors as one parameter: an optimizer's numbers are those it has with the tensors themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.training.in_one import InOne
from extensions_lib.training.optimizers import make_optimizer, treats_each_number_alone

SHAPES = [(3, 5), (7,), (2, 3, 1, 1), (), (64,), (130,)]
WAYS: dict[str, tuple[str, ...]] = {
    "AdamW": ("weight_decay=0.1",),
    "Adam": ("amsgrad=True",),
    "SGDNesterov": (),
}


def tensors(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def grouped(held: list[Tensor]) -> list[dict[str, Any]]:
    return [{"params": held[:4], "lr": 0.1}, {"params": held[4:], "lr": 0.02}]


class Learner:
    """Tensors with an optimizer, in one or apart; `step` learns from gradients drawn for it."""

    def __init__(self, name: str, *, joined: bool) -> None:
        self.held = tensors()
        self.in_one = InOne(grouped(self.held), joined)
        self.optimizer = make_optimizer(name, self.in_one.groups, 0.1, WAYS.get(name, ()))

    def step(self, number: int, without: tuple[int, ...] = ()) -> None:
        for place, (each, grad) in enumerate(zip(self.held, tensors(100 + number), strict=True)):
            each.grad = None if place in without else grad.detach()
        trained = self.in_one.gather()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        self.in_one.step(self.optimizer.step, self.optimizer)
        self.in_one.forget()

    def state(self) -> dict[str, Any]:
        return self.in_one.apart(copy.deepcopy(self.optimizer.state_dict()))

    def restore(self, held: list[Tensor], state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for own, other in zip(self.held, held, strict=True):
                own.copy_(other)
        self.optimizer.load_state_dict(self.in_one.joined(state))


def near(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", WAYS)
def test_the_same_is_learnt(name: str) -> None:
    one, apart = Learner(name, joined=True), Learner(name, joined=False)
    assert [len(group["params"]) for group in one.in_one.groups] == [1, 1]
    objects = list(one.held)
    for number in range(5):
        one.step(number)
        apart.step(number)
    assert all(a is b for a, b in zip(objects, one.held, strict=True))
    near([each.detach() for each in one.held], [each.detach() for each in apart.held])
    assert all(each.grad is None for each in one.held)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("joined", [(True, True), (True, False), (False, True)])
def test_a_state_is_that_of_the_tensors(name: str, joined: tuple[bool, bool]) -> None:
    first, whole = Learner(name, joined=joined[0]), Learner(name, joined=joined[0])
    for number in range(3):
        first.step(number)
        whole.step(number)
    state = first.state()
    assert [len(group["params"]) for group in state["param_groups"]] == [4, 2]
    second = Learner(name, joined=joined[1])
    second.restore(first.held, state)
    for number in range(3, 6):
        second.step(number)
        whole.step(number)
    near([each.detach() for each in second.held], [each.detach() for each in whole.held])
    if joined == (True, True):
        pairs = zip(second.held, whole.held, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", WAYS)
def test_a_state_before_the_first_step(name: str) -> None:
    first, second = Learner(name, joined=True), Learner(name, joined=True)
    second.restore(first.held, first.state())
    for each in (first, second):
        each.step(0)
    assert all(torch.equal(a, b) for a, b in zip(first.held, second.held, strict=True))


@pytest.mark.parametrize("name", WAYS)
def test_what_has_no_gradient_stays_with_all_that_is_known_of_it(name: str) -> None:
    one, apart = Learner(name, joined=True), Learner(name, joined=False)
    before = one.held[1].detach().clone()
    for number in range(3):
        for each in (one, apart):
            each.step(number, without=(1,))
    assert torch.equal(one.held[1].detach(), before)
    for number, without in ((3, ()), (4, (0, 4)), (5, (0, 4))):
        kept = [one.held[place].detach().clone() for place in without]
        for each in (one, apart):
            each.step(number, without)
        for place, was in zip(without, kept, strict=True):
            assert torch.equal(one.held[place].detach(), was)
    never = [place for place in range(len(SHAPES)) if place not in (0, 1, 4)]
    near([one.held[n].detach() for n in never], [apart.held[n].detach() for n in never])


def test_only_what_can_be_is_in_one() -> None:
    held = tensors()
    assert len(InOne(grouped(held), False).groups[0]["params"]) == 4
    mixed = [{"params": [held[0], held[1].double().detach().requires_grad_()]}]
    assert len(InOne(mixed, True).groups[0]["params"]) == 2
    assert len(InOne([{"params": held[:1]}], True).groups[0]["params"]) == 1
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))]
    assert len(InOne([{"params": parameters}], True).groups[0]["params"]) == 1


def test_very_many_numbers_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extensions_lib.training.in_one._MOST", 10)
    assert len(InOne([{"params": tensors()[:2]}], True).groups[0]["params"]) == 2


def test_each_process_has_a_gradient_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    from extensions_lib.training import ranks

    monkeypatch.setattr(ranks, "rank", lambda: ranks.Rank(0, 2))
    held = tensors()
    in_one = InOne(grouped(held), False)
    assert all(each.grad is not None and not each.grad.any() for each in in_one.gather())


def test_which_optimizers_do() -> None:
    assert treats_each_number_alone("adamw") and treats_each_number_alone("torch.optim.SGD")
    assert not treats_each_number_alone("Adafactor")
    assert not treats_each_number_alone("Prodigy")
