"""Networks that are being trained, by name: a prompt names them as it names those of files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.files.networks import Network

if TYPE_CHECKING:
    from extensions_lib.models.families import Family
    from extensions_lib.models.place import Snapshot


class LiveNetworks:
    """Those that there are in this program; a name belongs to one of them."""

    def __init__(self) -> None:
        self._looks: dict[str, tuple[Callable[[], Snapshot], int, Family]] = {}
        self._kept: dict[str, Network] = {}
        self._lock = threading.Lock()
        self._numbers = count(1)

    @contextmanager
    def shown(self, name: str, look: Callable[[], Snapshot], family: Family) -> Iterator[None]:
        """While it lasts, the network can be found; `look` says what it is then."""
        with self._lock:
            self._looks[name] = look, next(self._numbers), family
        try:
            yield
        finally:
            with self._lock:
                self._looks.pop(name, None)
                self._kept.pop(name, None)

    def names(self) -> list[str]:
        """Names, in the order in which they came."""
        with self._lock:
            return list(self._looks)

    def find(self, name: str) -> Network | None:
        """The network as it is now: the same object as long as its content is the same."""
        with self._lock:
            found = self._looks.get(name)
            if found is None:
                return None
            look, number, family = found
            now, kept = look(), self._kept.get(name)
            key = (f"live:{name}", number, now.version)
            if kept is None or kept.key != key:
                kept = Network(name, Path(name), dict(now.adapters), family=family, key=key)
                self._kept[name] = kept
            return kept


LIVE = LiveNetworks()
