"""The `<hypernet:name:weight>` tags of a prompt: found, read, put in force in their order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.hypernetworks import Hypernetwork, Key, read_hypernetwork
from extensions_lib.files.networks import network_key
from extensions_lib.patching.hypernetwork import Hypernetworks

if TYPE_CHECKING:
    from extensions_lib.library import Library
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.prompts.tags import NetworkRequest

KIND = "hypernet"
_KEPT = 2  # files in memory beyond those in use


class HypernetworkTags:
    """Keeps the hypernetworks of the last prompt in force on one model."""

    def __init__(self, model: LoadedModel, library: Library) -> None:
        self._library = library
        self._active = Hypernetworks(model)
        self._read: OrderedDict[Key, Hypernetwork] = OrderedDict()

    def apply(self, requests: Sequence[NetworkRequest]) -> list[str]:
        """Makes exactly these active; returns sentences on those that are missing or unfit."""
        messages: list[str] = []
        wanted = []
        for request in requests:
            try:
                wanted.append((self._found(request), request.te))
            except FileProblem as problem:
                messages.append(f"{request.tag or request.name}: {problem}")
        messages += self._active.apply(wanted)
        while len(self._read) > len(wanted) + _KEPT:
            self._read.popitem(last=False)
        return messages

    def clear(self) -> None:
        """Takes them all off; what was read stays at hand."""
        self._active.clear()

    def release(self) -> None:
        """Takes them all off and frees their memory."""
        self._active.clear()
        self._read.clear()

    def _found(self, request: NetworkRequest) -> Hypernetwork:
        entry = self._library.find(request.name)
        if entry is None:
            self._library.refresh()  # it may have been saved a moment ago
            entry = self._library.find(request.name)
        if entry is None:
            folders = ", ".join(str(folder) for folder in self._library.folders)
            raise FileProblem(f"no hypernetwork named {request.name!r} was found in {folders}.")
        key = network_key(entry.path)
        if key not in self._read:
            self._read[key] = read_hypernetwork(entry.path, entry.name)
        self._read.move_to_end(key)
        return self._read[key]
