"""From the answers of one or several models to the caption of a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from extensions_lib.tagging.ensemble import Ensemble
from extensions_lib.tagging.selection import Selected, Selection, Selector, text

if TYPE_CHECKING:
    from extensions_lib.tagging.labels import Label
    from extensions_lib.tagging.selection import Sparse


class Answering(Protocol):
    """What is asked of a model here; one without labels answers with sentences."""

    @property
    def labels(self) -> Sequence[Label]: ...

    @property
    def thresholds(self) -> Mapping[str, float]: ...


class Composer:
    """Captions from answers in the order of `models`: taggers' scores joined, sentences kept.

    `how` joins several taggers: union or average. `frequency` counts pictures by tag, for that
    order.
    """

    def __init__(
        self,
        models: Sequence[Answering],
        selection: Selection,
        how: str = "union",
        frequency: Mapping[str, int] | None = None,
    ) -> None:
        self.selection = selection
        taggers = [each for each in models if each.labels]
        self._sizes = [len(each.labels) for each in taggers]
        self._ensemble = Ensemble([each.labels for each in taggers], how) if taggers else None
        labels: Sequence[Label] = ()
        thresholds: Mapping[str, float] = {}
        if len(taggers) == 1:
            labels, thresholds = taggers[0].labels, taggers[0].thresholds
        elif self._ensemble is not None:
            labels = self._ensemble.labels
            thresholds = self._ensemble.thresholds([each.thresholds for each in taggers])
        self._selector = Selector(labels, selection, thresholds=thresholds, frequency=frequency)

    def selected(self, answers: Sequence[Sparse | str]) -> Selected:
        """Rating, tags and sentences of one picture."""
        scores = [each for each in answers if not isinstance(each, str)]
        sentences = tuple(each for each in answers if isinstance(each, str) and each)
        found = self._selector.select(self._joined(scores))
        return dataclasses.replace(found, sentences=sentences)

    def text(self, answers: Sequence[Sparse | str]) -> str:
        """The caption of one picture."""
        return text(self.selected(answers), self.selection)

    def _joined(self, scores: Sequence[Sparse]) -> Sparse | np.ndarray[Any, Any]:
        if len(scores) == 1:
            return scores[0]
        if self._ensemble is None:
            return np.zeros(0, np.float32)
        dense = []
        for size, (indices, values) in zip(self._sizes, scores, strict=True):
            row = np.zeros((1, size), np.float32)
            row[0, indices] = values
            dense.append(row)
        joined: np.ndarray[Any, Any] = self._ensemble.join(dense)[0]
        return joined
