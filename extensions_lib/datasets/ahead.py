"""Pictures decoded by threads before they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.datasets.at_once import threads_for
from extensions_lib.datasets.pictures import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image


class Ahead:
    """Decodes what is expected while something else is done; nothing else depends on it."""

    def __init__(self) -> None:
        self._waiting: dict[Path, Future[Image]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, paths: Sequence[Path]) -> None:
        """Begins to decode these, and forgets what was expected before."""
        wanted = dict.fromkeys(paths)
        for path in [path for path in self._waiting if path not in wanted]:
            self._waiting.pop(path).cancel()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads_for(), thread_name_prefix="ahead")
        for path in wanted:
            if path not in self._waiting:
                self._waiting[path] = self._pool.submit(open_picture, path)

    def take(self, path: Path) -> Image:
        """The picture, as `open_picture` opens it. Raises PictureProblem."""
        waiting = self._waiting.get(path)
        return waiting.result() if waiting else open_picture(path)
