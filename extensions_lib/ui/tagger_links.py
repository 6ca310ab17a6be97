"""Addresses under which the browser gets small pictures of files, made when it asks for them.

An address says nothing of the file and cannot be guessed: whoever has it was shown the set.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.datasets.thumbnails import SIDE, Thumbnails
from extensions_lib.errors import CrucibleError

if TYPE_CHECKING:
    from fastapi import FastAPI

ROUTE = "/crucible/tagger/picture/"
LARGE = 1024  # pixels, for a picture that is worked on
_MOST = 50_000  # addresses remembered
_KEPT = {"Cache-Control": "private, max-age=86400, immutable"}


class Links:
    """The addresses given out, and the thumbnails behind them; safe to use from many threads."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._secret = secrets.token_bytes(16)
        self._known: OrderedDict[str, tuple[Path, int]] = OrderedDict()
        self._thumbnails: dict[int, Thumbnails] = {}
        self._lock = threading.Lock()

    def to(self, picture: Path, side: int = SIDE) -> str:
        """The address of a picture, no side longer than `side` pixels; another once it changes.

        Relative to the page, which may lie below another address.
        """
        try:
            changed = os.stat(picture).st_mtime_ns
        except OSError:
            changed = 0
        said = f"{picture}\0{changed}\0{side}".encode(errors="surrogateescape")
        key = hashlib.blake2b(said, key=self._secret, digest_size=16).hexdigest()
        with self._lock:
            self._known[key] = picture, side
            self._known.move_to_end(key)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        return f".{ROUTE}{key}"

    def file(self, key: str) -> Path | None:
        """The small picture behind an address, made if need be; None for an unknown address.

        Raises PictureProblem, FileProblem.
        """
        with self._lock:
            picture, side = self._known.get(key, (None, 0))
            if picture is None:
                return None
            if side not in self._thumbnails:
                from extensions_lib.files.cache import FileCache

                facts = FileCache(self.cache)
                self._thumbnails[side] = Thumbnails(self.cache / "thumbnails", side, facts=facts)
            made = self._thumbnails[side]
        return made.get(picture)


def add_route(app: FastAPI, links: Links) -> None:
    """The route, under a WebUI's page or the standalone one."""
    from fastapi.responses import FileResponse, PlainTextResponse

    def picture(key: str) -> Any:
        try:
            path = links.file(key)
        except CrucibleError as problem:
            return PlainTextResponse(str(problem), status_code=415)
        if path is None:
            return PlainTextResponse("Reload the set: this address is old.", status_code=404)
        return FileResponse(path, media_type="image/webp", headers=_KEPT)

    app.add_api_route(ROUTE + "{key}", picture, methods=["GET"], include_in_schema=False)
