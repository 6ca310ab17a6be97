"""The `<lllite:name:weight>` tags of a prompt: found, read, put in force with their picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.lllite import SUFFIXES, ControlLLLite, Key, read_lllite
from extensions_lib.files.networks import network_key
from extensions_lib.hosts.control_picture import ControlPicture
from extensions_lib.hosts.networks import some
from extensions_lib.patching.lllite import LLLites, mostly

if TYPE_CHECKING:
    from PIL import Image

    from extensions_lib.library import Library
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.prompts.tags import NetworkRequest

KIND = "lllite"
UNUSED = "The control picture has no effect: the prompt has no <lllite:…> tag."
_KEPT = 2  # files in memory beyond those in use


class ControlTags:
    """The ControlNet-LLLite that a prompt asks for, on one model, until they are cleared.

    As a context it clears them at the end, also of an order that fails.
    """

    def __init__(self, model: LoadedModel, library: Library) -> None:
        self.model, self._library = model, library
        self._active = LLLites(model)
        self._picture: ControlPicture | None = None
        self._asked: list[NetworkRequest] = []
        self._hires = False
        self._read: OrderedDict[Key, ControlLLLite] = OrderedDict()

    def __enter__(self) -> ControlTags:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def apply(
        self,
        requests: Sequence[NetworkRequest],
        picture: Image.Image | None,
        *,
        hires: bool = False,
    ) -> list[str]:
        """Makes exactly these active; returns sentences on those that are missing or unfit.

        picture: what all of them see; None: none can be used. `hires`: for the second pass of a
        hires fix, in which a tag may have other weights.
        """
        self.clear()
        messages: list[str] = []
        if picture is not None and not requests:
            messages.append(UNUSED)
        wanted = []
        for request in requests:
            try:
                found = self._found(request, picture, messages)
            except FileProblem as problem:
                messages.append(f"{_tag(request)}: {problem}")
            else:
                wanted.append((request, found))
        if picture is not None and wanted:
            self._picture = ControlPicture(picture)
            self._asked, self._hires = [request for request, _ in wanted], hires
            unfit = self._active.apply([each for _, each in wanted], self._picture)
            for (request, each), lines in zip(wanted, unfit, strict=True):
                messages += _unfit(_tag(request), lines, each)
            self.at(0, 1)
        while len(self._read) > len(wanted) + _KEPT:
            self._read.popitem(last=False)
        return messages

    def at(self, step: int, steps: int) -> None:
        """Brings the weights of step `step` (from 0) of `steps` into force."""
        if self._asked:
            self._active.weigh([self._weight(request, step, steps) for request in self._asked])

    def _weight(self, request: NetworkRequest, step: int, steps: int) -> float:
        if request.plan is None:
            return request.unet
        return request.plan.weights(step, steps, hires=self._hires)[1]

    def remarks(self) -> list[str]:
        """What sampling has shown since `apply`, in sentences."""
        said = [self._picture.note] if self._picture and self._picture.note else []
        if self._active.unmet:
            said.append(
                f"{len(self._active.unmet)} layers were left without the control picture: something"
                " else (token merging, tiles) cuts up their input."
            )
        return said

    def clear(self) -> None:
        """Takes them all off; what was read stays at hand."""
        self._active.clear()
        self._picture, self._asked = None, []

    def release(self) -> None:
        """Takes them all off and frees their memory."""
        self.clear()
        self._read.clear()

    def _found(
        self, request: NetworkRequest, picture: Image.Image | None, messages: list[str]
    ) -> ControlLLLite:
        """The file of a tag, told in `messages` what of it cannot be used. Raises FileProblem."""
        found = self._load(request.name)
        family, own = found.family, self.model.family
        if family is not None and family is not own:
            raise FileProblem(
                f"made for {family}, but the loaded checkpoint {self.model.name} is {own}; left"
                " out."
            )
        if picture is None:
            raise FileProblem(
                "there is no control picture, so it has no effect; choose one under Control"
                " picture (in the shell: --control FILE)."
            )
        for parts, what in (
            (found.problems, "layers cannot be used"),
            (found.unmatched, "keys match no layer that is known here"),
        ):
            if parts:
                messages.append(f"{_tag(request)}: {len(parts)} {what}: {some(parts)}")
        return found

    def _load(self, name: str) -> ControlLLLite:
        entry = self._library.find(name)
        if entry is None:
            self._library.refresh()  # it may have been saved a moment ago
            entry = self._library.find(name)
        path = self._other_file(name) if entry is None else entry.path
        key = network_key(path)
        if key not in self._read:
            self._read[key] = read_lllite(path, structure=self.model.structure)
        self._read.move_to_end(key)
        return self._read[key]

    def _other_file(self, name: str) -> Path:
        """A file of this name in the same folders, of another kind: reading it says which.

        Raises FileProblem where there is none.
        """
        wanted = name.strip().replace("\\", "/").casefold()
        for folder in self._library.folders:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                below = path.relative_to(folder).as_posix().casefold()
                names = (below, path.name.casefold())
                suffix = path.suffix.lower()
                if suffix in SUFFIXES and any(
                    wanted in (each, each.removesuffix(suffix)) for each in names
                ):
                    return path
        folders = ", ".join(str(folder) for folder in self._library.folders)
        raise FileProblem(f"no ControlNet-LLLite named {name!r} was found in {folders}.")


def _tag(request: NetworkRequest) -> str:
    return request.tag or f"<{request.kind}:{request.name}>"


def _unfit(tag: str, lines: Sequence[str], found: ControlLLLite) -> list[str]:
    if not lines:
        return []
    count = f"{len(lines)} of {len(found.layers)} layers"
    if mostly(lines, found):
        return [
            f"{tag}: made for another model, so it was left out; {count} do not fit: {lines[0]}"
        ]
    return [f"{tag}: {count} were left out: {some(lines)}"]
