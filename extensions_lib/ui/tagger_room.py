"""What the Tagger tab works with: models, folders that may be named, open sets, kept scores."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from extensions_lib.api.typed import typed_path
from extensions_lib.datasets.journal import FOLDER
from extensions_lib.datasets.tag_set import TagSet
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.tagging.pool import Models, Pool, default_tagger
from extensions_lib.ui.tagger_links import Links

if TYPE_CHECKING:
    from PIL.Image import Image

    from extensions_lib.tagging.runners import Runner
    from extensions_lib.tagging.scores import ScoreStore

_SETS = 4  # open at once


class Choice(NamedTuple):
    """A model to choose. `here`: its files are on this machine."""

    name: str
    is_tagger: bool
    here: bool


@dataclass
class TaggerRoom:
    """`only_below`: where the page is open to strangers, the one folder whose folders they may
    name. `alone` keeps others from the device while a model works.
    """

    pool: Pool
    cache: Path
    base: Path
    only_below: Path | None = None
    alone: Callable[[], AbstractContextManager[Any]] = nullcontext
    _sets: dict[tuple[Path, bool], TagSet] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # --- folders ------------------------------------------------------------------------------

    def path(self, text: str | None, base: Path | None = None) -> Path:
        """A path as typed: quotes of a file manager and `~` are understood, a relative one begins
        at `base`, else the room's. Raises CrucibleError for none, and for one that may not be
        named.
        """
        path = typed_path(text, base or self.base, "Name a folder of pictures: paste its path.")
        if self.only_below is not None:
            below = self.only_below.resolve()
            if below not in (path.resolve(), *path.resolve().parents):
                raise CrucibleError(
                    f"This page is open to the network without a password, so only folders below"
                    f" {below} can be named; move the pictures there, or start it without --listen."
                )
        return path

    def named(self, text: str | None) -> Path | None:
        """The path that a field names, None for one that may not be named."""
        try:
            return self.path(text)
        except CrucibleError:
            return None

    def folder(self, text: str | None) -> Path:
        """A folder that is there. Raises CrucibleError."""
        path = self.path(text)
        if not path.is_dir():
            raise FileProblem(f"{path}: there is no such folder; check the path.")
        return path

    def tag_set(self, folder: Path, subfolders: bool, fresh: bool = False) -> TagSet:
        """The set of a folder, opened once for all windows. Raises PictureProblem."""
        key = (folder, subfolders)
        with self._lock:
            found = self._sets.pop(key, None)
            if found is None:
                found = TagSet(folder, subfolders)
            elif fresh:
                found.reload()
            self._sets[key] = found
            while len(self._sets) > _SETS:
                del self._sets[next(iter(self._sets))]
            return found

    @cached_property
    def links(self) -> Links:
        """Addresses of small pictures for the browser."""
        return Links(self.cache)

    # --- models -------------------------------------------------------------------------------

    def choices(self) -> list[Choice]:
        """All models there are, those on this machine first."""
        from extensions_lib.tagging import captioners, hub, interrogator, manifest

        models = self.pool.models
        found = [Choice(e.name, True, hub.is_here(e)) for e in manifest.entries(models)]
        for known in (*captioners.entries(models), *interrogator.entries(models)):
            here = known.folder is not None or bool(hub.cached(known.repo, ["config.json"]))
            found.append(Choice(known.name, False, here))
        return sorted(found, key=lambda choice: not choice.here)

    def default(self) -> list[str]:
        """The model to begin with, none where there is none."""
        try:
            return [default_tagger(self.pool.models)]
        except FileProblem:
            return []

    def wanted(self, names: Sequence[str], models: Models) -> Models:
        """The models of these names. Raises CrucibleError for no name."""
        if not names:
            raise CrucibleError("Choose at least one model.")
        taggers = {choice.name for choice in self.choices() if choice.is_tagger}
        return replace(
            models,
            tagger=tuple(name for name in names if name in taggers),
            captioner=tuple(name for name in names if name not in taggers),
        )

    # --- scores -------------------------------------------------------------------------------

    @contextmanager
    def store(self, folder: Path | None, make: bool = True) -> Iterator[ScoreStore]:
        """The scores kept beside a set; in memory where nobody may write, or none are there yet
        and `make` is false.
        """
        from extensions_lib.tagging.scores import NAME, ScoreStore

        place = folder and folder / FOLDER
        if place is not None and not make and not (place / NAME).exists():
            place = None
        store = ScoreStore(place)
        try:
            yield store
        finally:
            store.close()


def answers(
    runners: Sequence[Runner], picture: Path | Image, store: ScoreStore | None = None
) -> list[Any]:
    """What the models say about a picture, a file or one in RGB: kept, or asked for.

    Raises PictureProblem.
    """
    from extensions_lib.datasets.pictures import PictureProblem, open_picture

    content, opened, raw = None, None, b""
    if not isinstance(picture, Path):
        opened = picture
    else:
        try:
            raw = picture.read_bytes()
        except OSError as error:
            raise PictureProblem(f"{picture}: cannot be read ({error.strerror}).") from error
        content = hashlib.sha256(raw).digest()
    found = []
    for runner in runners:
        said = store.get(runner.key, content) if store and content else None
        if said is None:
            opened = opened or open_picture(raw)
            [said] = runner.run([runner.prepare(opened)], lambda: False)
            if store and content:
                store.put(runner.key, [(content, said)])
        found.append(said)
    return found


def devices(runners: Sequence[Runner]) -> str:
    """Where the models run: `CPU`, or `wd-vit: CUDA, joytag: CPU` where they differ."""
    places = [(runner.key.name, _device(_model(runner))) for runner in runners]
    if len({place for _, place in places}) == 1:
        return places[0][1]
    return ", ".join(f"{name}: {place}" for name, place in places)


def device_notes(runners: Sequence[Runner]) -> list[str]:
    """For each model that does not run on the GPU that is there: why, and what to do."""
    return [
        f"{runner.key.name} runs on the CPU: {why}"
        for runner in runners
        if (why := getattr(_model(runner), "why_not_gpu", None))
    ]


def _model(runner: Any) -> Any:
    return getattr(runner, "tagger", None) or getattr(runner, "captioner", None)


def _device(model: Any) -> str:
    return str(getattr(model, "provider", None) or getattr(model, "device", "CPU")).upper()
