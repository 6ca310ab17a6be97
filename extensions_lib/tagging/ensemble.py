"""Several taggers as one: their scores joined tag by tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.labels import GENERAL, RATING, Label

if TYPE_CHECKING:
    from extensions_lib.tagging.taggers import Tagger

Array = np.ndarray[Any, Any]
WAYS = ("union", "average")


class Ensemble:
    """The tags of several taggers. A tag is the same where its name is, `_` or space, any case.

    `union`: the highest score of those that know the tag. `average`: the mean over them. A tag has
    the spelling of the first tagger that knows it, and the first category that is not general;
    ratings are joined with ratings only.
    """

    def __init__(self, labels: Sequence[Sequence[Label]], how: str = "union") -> None:
        if how not in WAYS:
            raise CrucibleError(f"ensemble: takes {' or '.join(WAYS)}, not {how!r}.")
        self.how = how
        names: dict[tuple[str, bool], int] = {}
        joined: list[Label] = []
        self._places: list[Array] = []
        for known in labels:
            places = np.empty(len(known), np.intp)
            for i, label in enumerate(known):
                key = (label.name.replace(" ", "_").casefold(), label.category == RATING)
                place = names.setdefault(key, len(joined))
                if place == len(joined):
                    joined.append(label)
                elif joined[place].category == GENERAL:
                    joined[place] = joined[place]._replace(category=label.category)
                places[i] = place
            self._places.append(places)
        self.labels = tuple(joined)
        self._knowing = np.zeros(len(joined), np.float32)
        for places in self._places:
            self._knowing[np.unique(places)] += 1

    def join(self, scores: Sequence[Array]) -> Array:
        """Joined scores float32 [N, labels] of each tagger's [N, its labels], in their order."""
        count = len(scores[0])
        total: Array = np.zeros((count, len(self.labels)), np.float32)
        for places, values in zip(self._places, scores, strict=True):
            one = np.zeros_like(total)
            # A list may name a tag twice; the higher score counts.
            np.maximum.at(one.T, places, np.asarray(values, np.float32).T)
            total = np.maximum(total, one) if self.how == "union" else total + one
        if self.how == "average":
            total /= self._knowing
        return total

    def thresholds(self, each: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Default thresholds by category: the lowest of the taggers', or the mean."""
        found: dict[str, list[float]] = {}
        for one in each:
            for category, value in one.items():
                found.setdefault(category, []).append(value)
        if self.how == "union":
            return {category: min(values) for category, values in found.items()}
        return {category: sum(values) / len(values) for category, values in found.items()}


def ensemble_of(taggers: Sequence[Tagger], how: str) -> Ensemble:
    """The ensemble of loaded taggers."""
    return Ensemble([tagger.labels for tagger in taggers], how)
