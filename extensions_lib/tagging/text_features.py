"""CLIP's features of many words, computed once and kept in safetensors files.

One file for each model and list: the words, and their unit vectors as float16 [words, width]. When
a list changes, only the words that are new are computed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import Stopped

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[str]], "torch.Tensor"]  # texts -> unit vectors [texts, width]
Counted = Callable[[int, int], None]  # done, of how many

_SAVE_EVERY = 8192  # words, so that little of a long list is lost when it is stopped


class TextFeatures:
    """The features of lists by one model.

    `folder` keeps the files; None keeps nothing. `revision` tells the model: another one's files
    are not taken.
    """

    def __init__(self, encode: Encode, revision: str, folder: Path | None, batch: int) -> None:
        self._encode, self._revision = encode, revision
        self._folder, self._batch = folder, batch

    def of(
        self,
        name: str,
        words: Sequence[str],
        *,
        stop: Callable[[], bool] | None = None,
        on_progress: Counted | None = None,
    ) -> torch.Tensor:
        """Unit vectors [words, width] in float16. `name` is the list's.

        Raises Stopped when `stop` says so; what was computed until then is kept.
        """
        import torch

        known = self._read(name)
        new = [word for word in dict.fromkeys(words) if word not in known]
        # Texts of one length stand together, so that little is padded.
        new.sort(key=len)
        try:
            for at in range(0, len(new), self._batch):
                if stop is not None and stop():
                    raise Stopped("Stopped.")
                part = new[at : at + self._batch]
                known.update(zip(part, self._encode(part).half().cpu(), strict=True))
                if on_progress is not None:
                    on_progress(min(at + self._batch, len(new)), len(new))
                if at // _SAVE_EVERY != (at + self._batch) // _SAVE_EVERY:
                    self._write(name, known)
        except Stopped:
            self._write(name, known)
            raise
        rows = torch.stack([known[word] for word in words])
        if new:
            self._write(name, {word: known[word] for word in words})
        return rows

    def _path(self, name: str) -> Path | None:
        return self._folder / f"{name}-{self._revision}.safetensors" if self._folder else None

    def _read(self, name: str) -> dict[str, torch.Tensor]:
        """Vectors by word; none where there is no file, or one that is damaged."""
        from safetensors import SafetensorError, safe_open

        path = self._path(name)
        if path is None or not path.is_file():
            return {}
        try:
            with safe_open(str(path), framework="pt") as opened:
                told = opened.metadata() or {}
                rows = opened.get_tensor("features")
            words = json.loads(told["words"])
            if told["model"] != self._revision or len(words) != len(rows):
                raise ValueError("it is of another model or list")
            return dict(zip(words, rows, strict=True))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is computed anew: %s", path, error)
            return {}

    def _write(self, name: str, known: dict[str, torch.Tensor]) -> None:
        import torch
        from safetensors.torch import save_file

        path = self._path(name)
        if path is None or not known:
            return
        told = {"model": self._revision, "words": json.dumps(list(known), ensure_ascii=False)}
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": torch.stack(list(known.values()))}, part, metadata=told)
            os.replace(part, path)
        except Exception as error:  # safetensors' own kinds besides OSError; a cache may be without
            log.warning("%s cannot be kept: %s", path, error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
