"""Pictures decoded and resized by threads before they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.datasets.at_once import threads_for
from extensions_lib.datasets.augment import ready
from extensions_lib.datasets.buckets import Size
from extensions_lib.datasets.items import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

_Key = tuple[Path, Size]


class Ahead:
    """Makes ready what is expected while something else is done; nothing else depends on it."""

    def __init__(self) -> None:
        self._waiting: dict[_Key, Future[Image]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Begins with these, and forgets what was expected before."""
        wanted = {_key(picture): picture for picture in pictures}
        for key in [key for key in self._waiting if key not in wanted]:
            self._waiting.pop(key).cancel()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads_for(), thread_name_prefix="ahead")
        for key, picture in wanted.items():
            if key not in self._waiting:
                self._waiting[key] = self._pool.submit(ready, picture)

    def take(self, picture: Picture) -> Image:
        """The picture, as `ready` makes it. Raises PictureProblem."""
        waiting = self._waiting.get(_key(picture))
        return waiting.result() if waiting else ready(picture)


def _key(picture: Picture) -> _Key:
    return picture.path, picture.where.resized
