"""Which pictures make which batch."""

from __future__ import annotations

from collections import Counter

import pytest

from extensions_lib.datasets.plan import Plan, Planned, held_out

A, B = (512, 512), (640, 384)


def came(plan: Plan, epoch: int = 0) -> Counter[int]:
    return Counter(plan.pictures[item] for batch in plan.order(epoch) for item in batch)


def test_each_item_comes_once_an_epoch_in_batches_of_one_bucket() -> None:
    planned = [
        Planned(A, 3, batch_size=4),
        Planned(B, 2, batch_size=4),
        Planned(A, 2, batch_size=4),
    ]
    plan = Plan(planned, seed=7)
    order = plan.order(0)
    assert sorted(item for batch in order for item in batch) == list(range(7))
    assert came(plan) == {0: 3, 1: 2, 2: 2}
    assert sorted(len(batch) for batch in order) == [1, 2, 4] and len(plan) == 3
    for batch in order:
        assert len({planned[plan.pictures[item]].bucket for item in batch}) == 1


def test_the_order_follows_from_seed_and_epoch() -> None:
    planned = [Planned(A, batch_size=2)] * 9 + [Planned(B, batch_size=2)] * 4
    plan, again = Plan(planned, 7), Plan(planned, 7)
    assert [plan.order(epoch) for epoch in (5, 0, 5)] == [again.order(e) for e in (5, 0, 5)]
    orders = {plan.order(epoch) for epoch in range(8)} | {Plan(planned, 8).order(0)}
    assert len(orders) == 9
    assert Plan([Planned(A)] * 5, 1).order(2) == ((2,), (4,), (0,), (3,), (1,))  # on every system


def test_buckets_are_mixed_over_the_epoch() -> None:
    plan = Plan([Planned(A)] * 40 + [Planned(B)] * 40, 0)
    firsts = [plan.pictures[batch[0]] < 40 for batch in plan.order(0)]
    assert 8 < sum(firsts[:40]) < 32


def test_data_sets_do_not_share_batches() -> None:
    planned = [Planned(A, 2, batch_size=4), Planned(A, 2, batch_size=3, dataset=1)]
    plan = Plan(planned, 0)
    assert sorted(plan.order(0)) in ([(0, 1), (2, 3)], [(1, 0), (2, 3)], [(0, 1), (3, 2)],
                                     [(1, 0), (3, 2)])  # fmt: skip


@pytest.mark.parametrize(
    ("training", "regular", "counts"),
    [
        ((10,), (1, 1, 1), (4, 3, 3)),  # too few: again, one after another
        ((2, 2), (1,) * 6, (1, 1, 1, 1, 0, 0)),  # too many: the rest is left out
        ((3,), (2, 2, 2), (2, 1, 0)),  # the last one only as far as needed
        ((7,), (2, 1), (4, 3)),
        ((3,), (), ()),
    ],
)
def test_regularisation_comes_as_often_as_training(
    training: tuple[int, ...], regular: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    planned = [Planned(A, times) for times in training]
    planned += [Planned(B, times, is_reg=True) for times in regular]
    assert Plan(planned, 0).counts == training + counts


def test_each_data_set_has_its_own_regularisation() -> None:
    planned = [
        Planned(A, 4),
        Planned(A, 1, is_reg=True),
        Planned(A, 6, dataset=1),
        Planned(A, 1, is_reg=True, dataset=1),
        Planned(A, 1, is_reg=True, dataset=2),
    ]
    assert Plan(planned, 0).counts == (4, 4, 6, 6, 0)


def test_what_is_held_out() -> None:
    names = [f"{number}.png" for number in range(20)]
    out = held_out(names, 0.2, 3)
    assert len(out) == 4 and out == held_out(names, 0.2, 3) and out != held_out(names, 0.2, 4)
    assert len(held_out(names, 0.001, 0)) == 1 and len(held_out(names[:2], 0.9, 0)) == 1
    assert held_out(names, 0.0, 0) == set() and held_out(names[:1], 0.5, 0) == set()
