"""Which pictures make which batch of an epoch, from numbers alone.

A plan keeps no state: `order` is a function of the seed and the epoch, so that a run goes on at any
batch of any epoch as if it had never stopped.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from extensions_lib.datasets.buckets import Size

T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    """What a plan knows of a picture. Pictures of one `dataset` and `bucket` share batches."""

    bucket: Size
    repeats: int = 1
    is_reg: bool = False
    batch_size: int = 1
    dataset: int = 0


class Plan:
    """The batches of every epoch for these pictures.

    An item is one of the times that a picture comes in an epoch: `pictures[item]` is the number of
    its picture. `counts` is how often each picture comes. Regularisation pictures are added until
    they are as many as the others of their data set, repeats counted: those over are left out, and
    if there are too few they come again, one after another.
    """

    def __init__(self, planned: Sequence[Planned], seed: int) -> None:
        self.seed = seed
        self.counts = _counts(planned)
        self.pictures = tuple(
            number for number, count in enumerate(self.counts) for _ in range(count)
        )
        groups: dict[tuple[int, Size, int], list[int]] = {}
        for item, number in enumerate(self.pictures):
            each = planned[number]
            groups.setdefault((each.dataset, each.bucket, each.batch_size), []).append(item)
        self._groups = [(key[2], tuple(groups[key])) for key in sorted(groups)]
        self._order = functools.lru_cache(maxsize=2)(self._made)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(items) // size) for size, items in self._groups)

    def order(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        """The batches of an epoch, each the items of one bucket; its last one may be short."""
        return self._order(epoch)

    def _made(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        drawn = random.Random(f"{self.seed}:{epoch}:order")
        batches = []
        for size, items in self._groups:
            shuffled = list(items)
            drawn.shuffle(shuffled)
            batches += [tuple(shuffled[at : at + size]) for at in range(0, len(items), size)]
        drawn.shuffle(batches)
        return tuple(batches)


def _counts(planned: Sequence[Planned]) -> tuple[int, ...]:
    """How often each picture comes in an epoch."""
    counts = [0 if each.is_reg else each.repeats for each in planned]
    for dataset in {each.dataset for each in planned}:
        those = [number for number, each in enumerate(planned) if each.dataset == dataset]
        wanted = sum(counts[number] for number in those)
        added = [number for number in those if planned[number].is_reg]
        for number, count in _filled(added, [planned[n].repeats for n in added], wanted):
            counts[number] += count
    return tuple(counts)


def _filled(pool: Sequence[int], repeats: Sequence[int], wanted: int) -> Iterable[tuple[int, int]]:
    """Of the pool, with how often: first each with its repeats, then one at a time, till enough."""
    if not pool:
        return
    first = True
    while wanted > 0:
        for number, times in zip(pool, repeats, strict=True):
            count = min(times if first else 1, wanted)
            yield number, count
            wanted -= count
            if not wanted:
                return
        first = False


def held_out(names: Sequence[T], share: float, seed: int) -> set[T]:
    """Which are held out: that share of them, to the nearest whole, one at least and not all.

    None of a single one, nor where the share is 0.
    """
    if not share or len(names) < 2:
        return set()
    count = min(len(names) - 1, max(1, round(len(names) * share)))
    return set(random.Random(f"{seed}:held out").sample(list(names), count))
