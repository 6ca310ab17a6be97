"""A model as the pipeline runs it: prepares one picture in any thread, answers for some in one.

Taggers answer with scores, captioners and the interrogator with text; what stands in the store is
exactly the answer. An answer never depends on the pictures beside it: batches are always full, the
last one with black pictures.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.providers import is_out_of_memory
from extensions_lib.tagging.scores import ModelKey, sparse

if TYPE_CHECKING:
    from PIL.Image import Image

    from extensions_lib.tagging.labels import Label
    from extensions_lib.tagging.selection import Array, Sparse
    from extensions_lib.tagging.taggers import Tagger

log = logging.getLogger(__name__)
GPU_BATCH = 16
# More at once is no faster on a CPU, and a call cannot be stopped half way.
CPU_BATCH = 1


class Runner(Protocol):
    """A model in the pipeline. `batch`: how many pictures it takes at once.

    `labels` and `thresholds` are a tagger's, empty for one that answers with sentences. `least` is
    the side in pixels that it wants of a picture decoded in a hurry, None: all of it.
    """

    key: ModelKey
    batch: int

    @property
    def labels(self) -> Sequence[Label]: ...

    @property
    def thresholds(self) -> Mapping[str, float]: ...

    @property
    def least(self) -> int | None: ...

    def prepare(self, image: Image) -> Any:
        """What the model needs of a picture, small enough to wait in a queue; in any thread."""

    def run(self, prepared: Sequence[Any], stop: Callable[[], bool]) -> list[Sparse | str]:
        """An answer for each of at most `batch` pictures; in one thread at a time."""


class TaggerRunner:
    """A tagger with a batch of its own that is filled and never made anew.

    When the device's memory is too small, the batch is halved for good and the call made again.
    """

    def __init__(self, tagger: Tagger, batch: int | None = None, draft: bool = False) -> None:
        self.tagger = tagger
        self.labels, self.thresholds = tagger.labels, tagger.thresholds
        self.least = tagger.draft_side if draft else None
        preprocess = f"{tagger.preprocess} draft" if self.least else tagger.preprocess
        self.key = ModelKey(tagger.name, tagger.revision, preprocess)
        usual = CPU_BATCH if tagger.provider == "CPU" else GPU_BATCH
        self.batch = tagger.batch or batch or usual
        self._buffer = self._made()

    def _made(self) -> Array:
        return np.zeros((self.batch, self.tagger.size, self.tagger.size, 3), np.uint8)

    def prepare(self, image: Image) -> Array:
        """uint8 [S, S, 3]."""
        return self.tagger.prepare(image)

    def run(self, prepared: Sequence[Any], stop: Callable[[], bool]) -> list[Sparse | str]:
        """The scores above the store's floor, for each picture."""
        found: list[Sparse | str] = []
        while len(found) < len(prepared) and not stop():
            some = prepared[len(found) : len(found) + self.batch]
            values = self._scores(some)
            if values is not None:
                found += [sparse(row) for row in values]
        return found

    def _scores(self, some: Sequence[Array]) -> Array | None:
        """float32 [len(some), labels]; None when the batch had to be halved first."""
        for place, each in enumerate(some):
            self._buffer[place] = each
        self._buffer[len(some) :] = 0
        try:
            return self.tagger.score(self._buffer)[: len(some)]
        except Exception as error:  # each runtime has its own for this
            if not is_out_of_memory(error):
                raise
            if self.batch == 1:
                raise CrucibleError(
                    f"{self.tagger.name}: the memory of {self.tagger.provider} is too small for"
                    " one picture; unload other models, or take the option device=cpu."
                ) from error
            self.batch //= 2
            self._buffer = self._made()
            log.warning("%s: out of memory, going on with %d at once", self.key.name, self.batch)
            return None


class CaptionRunner:
    """A captioner, or the CLIP interrogator; its texts depend on how it was told to write."""

    labels: Sequence[Label] = ()
    thresholds: Mapping[str, float] = MappingProxyType({})
    least = None

    def __init__(self, captioner: Any) -> None:
        from extensions_lib.options import changed

        self.captioner = captioner
        told = changed(captioner.options)
        self.batch = int(told.get("batch", getattr(captioner.options, "batch", 1)))
        where = ("batch", "device", "dtype")
        ways = {name: value for name, value in told.items() if name not in where}
        self.key = ModelKey(captioner.name, captioner.revision, json.dumps(ways, sort_keys=True))

    def prepare(self, image: Image) -> Image:
        """The picture itself: its processor makes it smaller."""
        return image

    def run(self, prepared: Sequence[Any], stop: Callable[[], bool]) -> list[Sparse | str]:
        """A sentence for each picture."""
        return list(self.captioner.caption(prepared, stop=stop))
