"""A WebUI as training runs in it (models.place.Place): in turns, under its own queue lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.live import LIVE
from extensions_lib.hosts.stated import CFG_KEY, SIDES, SIZE_KEY, cfg_of, size_of
from extensions_lib.hosts.webui_turns import WebUITurns

if TYPE_CHECKING:
    from PIL import Image

    from extensions_lib.hosts.webui_host import WebUIHost
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.models.place import Sample, Snapshot
    from extensions_lib.models.trainable import Trainable

_FOLDERS = {  # the argument of the WebUI that names it, and what it is called
    "embedding": ("embeddings_dir", "embeddings"),
    "hypernetwork": ("hypernetwork_dir", "hypernetworks"),
    "checkpoint": ("ckpt_dir", "Stable-diffusion"),
    "lllite": ("controlnet_dir", "ControlNet"),
}
# Settings of the WebUIs from which the encoding of a prompt follows.
_OF_PROMPTS = (
    "emphasis",
    "comma_padding_backtrack",
    "use_old_emphasis_implementation",
    "enable_emphasis",
)


class WebUIPlace:
    """Trains on the checkpoint that the WebUI has loaded.

    People may load another one between two steps. The next turn then raises CrucibleError, so that
    the run ends with what it has learnt; none of it ever reaches the other checkpoint.
    """

    def __init__(self, host: WebUIHost) -> None:
        self.host = host
        self._user = ""
        self._turns: WebUITurns | None = None  # of the run that has the checkpoint
        self._model: LoadedModel | None = None
        self._lock = threading.Lock()

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """As `Place.reserved`."""
        with self._lock:
            if self._user:
                raise CrucibleError(
                    f"The training of {self._user} has the checkpoint: stop it first, or wait."
                )
            self._user, self._turns = name, WebUITurns(self.host)
        try:
            yield
        finally:
            self._user, self._turns, self._model = "", None, None

    @contextmanager
    def turn(self, stop: threading.Event | None = None) -> Iterator[Trainable]:
        """As `Place.turn`. Raises CrucibleError for a run that finds another checkpoint."""
        turns = self._turns or WebUITurns(self.host)
        with turns.turn(stop) as trainable:
            self._model = trainable.loaded
            yield trainable

    def shown(self, name: str, snapshot: Callable[[], Snapshot]) -> AbstractContextManager[None]:
        """As `Place.shown`, after the run's first turn."""
        model = self._model or self.host.model()
        return LIVE.shown(name, snapshot, model.family)

    def picture(
        self,
        sample: Sample,
        stop: threading.Event | None = None,
        within: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Image.Image:
        """As `Place.picture`."""
        model = self._model or self.host.model()
        side = SIDES[model.family.value]
        width, height = size_of(model.metadata.get(SIZE_KEY, "")) or (side, side)
        order = GenerationRequest(
            prompt=sample.prompt,
            negative=sample.negative,
            steps=sample.steps,
            cfg=sample.cfg,
            seed=sample.seed,
            width=sample.width or width,
            height=sample.height or height,
        )
        if sample.sampler:
            order = replace(order, sampler=sample.sampler)
        return self.host.generate(order, stop=stop, within=within).images[0]

    def folder(self, kind: str) -> Path:
        """As `Place.folder`: where the WebUI was told that they are, or its own place for them."""
        from modules import paths, shared

        if kind == "network":
            return Path(self.host.network_folders()[0])
        told, usual = _FOLDERS[kind]
        named = getattr(shared.cmd_opts, told, None)
        root = Path(paths.data_path if kind == "embedding" else paths.models_path)
        return Path(named).absolute() if named else root / usual

    def about(self) -> Mapping[str, Any]:
        """As `Place.about`."""
        from modules import sd_models, shared

        info = sd_models.select_checkpoint()
        if info is None:
            raise CrucibleError("The WebUI has no checkpoint to train on; choose one.")
        metadata = getattr(info, "metadata", None) or {}
        cfg = cfg_of(str(metadata.get(CFG_KEY, "")))
        return {
            "name": info.name,
            "path": Path(info.filename),
            "cfg": cfg,
            "cache": self.host.session.cache,
            "text": repr([getattr(shared.opts, each, None) for each in _OF_PROMPTS]),
        }

    def new_files(self) -> None:
        """As `Place.new_files`."""
        self.host.session.library.refresh()
