"""Small pictures for galleries, made on demand and kept by content in a bounded cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from extensions_lib.atomic import atomic_write, reason
from extensions_lib.datasets.at_once import at_once
from extensions_lib.datasets.pictures import PictureProblem, open_picture
from extensions_lib.errors import CrucibleError

SIDE = 256
MOST_BYTES = 512 << 20
_KEEP = 0.9  # of the bound, after thumbnails were let go


class Facts(Protocol):
    """What remembers a file's content hash over a restart, as long as size and time stay."""

    def get(self, kind: str, path: str | os.PathLike[str]) -> Any | None: ...
    def put(self, kind: str, path: str | os.PathLike[str], value: Any) -> None: ...


class Thumbnails:
    """Thumbnails (WEBP, longer side `side` pixels, upright) in `folder`, of `most_bytes` in all.

    The least recently shown go first. A picture that was moved keeps its thumbnail, one that was
    changed gets a new one. Safe to use from several threads and programs.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        side: int = SIDE,
        most_bytes: int = MOST_BYTES,
        facts: Facts | None = None,
    ) -> None:
        self.folder, self.side, self.most_bytes = Path(folder), side, most_bytes
        self._facts = facts
        self._hashes: dict[str, tuple[tuple[int, int], str]] = {}
        self._lock = threading.Lock()
        self._bytes: int | None = None  # in the folder, about; None: not counted yet

    def get(self, picture: Path) -> Path:
        """The thumbnail of a picture, made if need be.

        Raises PictureProblem for a picture that cannot be read, FileProblem where nothing can be
        written.
        """
        path = self.folder / f"{self._hash(picture)}-{self.side}.webp"
        try:
            os.utime(path)  # shown just now
            return path
        except OSError:
            pass
        small = open_picture(picture, least=2 * self.side)
        small.thumbnail((self.side, self.side))
        with atomic_write(path, durable=False) as temporary:
            small.save(temporary, format="WEBP", quality=80, method=2)
        self._bound(path.stat().st_size)
        return path

    def many(
        self,
        pictures: Sequence[Path],
        threads: int | None = None,
        stop: threading.Event | None = None,
    ) -> list[Path | CrucibleError]:
        """The thumbnails of a page, or why there is none, in order; `stop` ends it sooner."""
        return [made for _, made in at_once(self.get, pictures, threads, None, stop)]

    def _hash(self, picture: Path) -> str:
        key = os.path.abspath(picture)
        try:
            found = os.stat(key)
            identity = (found.st_size, found.st_mtime_ns)
            known = self._hashes.get(key)
            if known and known[0] == identity:
                return known[1]
            digest = self._facts.get("sha256", key) if self._facts else None
            if not isinstance(digest, str):
                digest = _sha256(key)
                if self._facts:
                    self._facts.put("sha256", key, digest)
        except OSError as error:
            raise PictureProblem(f"{picture}: cannot be read ({reason(error)}).") from error
        self._hashes[key] = (identity, digest[:40])
        return digest[:40]

    def _bound(self, added: int) -> None:
        with self._lock:
            if self._bytes is not None:
                self._bytes += added
                if self._bytes <= self.most_bytes:
                    return
            kept = []
            with os.scandir(self.folder) as listing:
                for item in listing:
                    if item.name.endswith(".webp"):
                        found = item.stat()
                        kept.append((found.st_mtime_ns, found.st_size, item.path))
                    elif item.name.endswith(".tmp") and item.stat().st_mtime < time.time() - 3600:
                        _remove(item.path)  # left by a killed program
            self._bytes = sum(size for _, size, _ in kept)
            if self._bytes <= self.most_bytes:
                return
            for _, size, path in sorted(kept):
                if self._bytes <= self.most_bytes * _KEEP:
                    break
                _remove(path)
                self._bytes -= size


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another program was faster
        os.unlink(path)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
