"""What is wanted on a model: networks, how much of each, and for which picture of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from extensions_lib.adapters.base import Adapter
from extensions_lib.patching.choice import Course
from extensions_lib.patching.rows import Multiplier, is_zero, weight_of


class Source(Protocol):
    """What is asked of a network: `key` is the identity of its content, not its name.

    Keys are hashable and have an order among themselves, e.g. (path, size, time).
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> Any: ...

    @property
    def adapters(self) -> Mapping[str, Adapter]: ...


@dataclass(frozen=True)
class Shares:
    """How much of a network's multiplier each layer has: 1 where `of` does not name it.

    `key` stands for the whole: shares with one key are the same. Keys have an order.
    """

    key: tuple[object, ...]
    of: Mapping[str, float] = field(compare=False)


@dataclass(frozen=True)
class Wanted:
    """A network, its multipliers for text encoders and UNet, and the ranks kept (None: all).

    `unet` may be a tuple: one weight for each picture of the batch. `course` says how it goes over
    the steps where it changes. Neither alters what is computed, only where.
    """

    network: Source
    te: float = 1.0
    unet: Multiplier = 1.0
    dyn: int | None = None
    shares: Shares | None = None
    course: Course | None = None

    def multiplier(self, canonical: str) -> Multiplier:
        """That of a layer. The VAE, asked picture by picture, has the first picture's for all."""
        share = 1.0 if self.shares is None else self.shares.of.get(canonical, 1.0)
        if canonical.startswith("te"):
            return self.te * share
        if not isinstance(self.unet, tuple):
            return self.unet * share
        if canonical.startswith("vae"):
            return self.unet[0] * share
        return tuple(each * share for each in self.unet)

    @property
    def part(self) -> tuple[Any, int, str]:
        """What of which network: those that agree in it add up, and it gives them an order."""
        shares = "" if self.shares is None else repr(self.shares.key)
        return self.network.key, -1 if self.dyn is None else self.dyn, shares


def combined(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each network once, its multipliers added up, those with none left out, in canonical order."""
    groups: dict[tuple[Any, int, str], list[Wanted]] = {}
    for each in wanted:
        groups.setdefault(each.part, []).append(each)
    sums = (
        # fsum rounds once, so the order of the parts cannot show.
        replace(
            group[0],
            te=math.fsum(w.te for w in group),
            unet=_sum([w.unet for w in group]),
            course=next((w.course for w in group if w.course is not None), None),
        )
        for _, group in sorted(groups.items(), key=lambda item: item[0])
    )
    # One that changes stays in the set also in the steps in which it is 0: its place is kept.
    return [each for each in sums if each.te != 0 or not is_zero(each.unet) or each.course]


def together(pictures: Sequence[Sequence[Wanted]], text_of: int = 0) -> list[Wanted]:
    """The sets of the pictures of one batch as one set: each network with a weight for each.

    A network that all have alike for the whole sampling has one weight. The text encoders, which
    are asked about one prompt after another, get the weights of picture `text_of`.
    """
    sets = [{each.part: each for each in combined(wanted)} for wanted in pictures]
    result = []
    for part in sorted({part for each in sets for part in each}):
        one = next(each[part] for each in sets if part in each)
        weights = tuple(weight_of(each[part].unet, 0) if part in each else 0.0 for each in sets)
        text = sets[text_of].get(part)
        course = next((e[part].course for e in sets if part in e and e[part].course), None)
        result.append(
            replace(
                one,
                te=0.0 if text is None else text.te,
                unet=weights if course or len(set(weights)) > 1 else weights[0],
                course=course,
            )
        )
    return result


def _sum(weights: Sequence[Multiplier]) -> Multiplier:
    if len(weights) == 1:
        return weights[0]
    count = max(len(each) if isinstance(each, tuple) else 1 for each in weights)
    sums = [math.fsum(weight_of(each, i) for each in weights) for i in range(count)]
    return tuple(sums) if count > 1 else sums[0]


def identity(wanted: Iterable[Wanted]) -> list[tuple[object, ...]]:
    """What tells one set of networks from another."""
    return [(*each.part, each.te, each.unet, each.course) for each in wanted]
