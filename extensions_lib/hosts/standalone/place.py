"""The standalone host as training runs in it (models.place.Place)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.live import LIVE
from extensions_lib.hosts.standalone.host import StandaloneHost
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable

if TYPE_CHECKING:
    from PIL import Image

    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.models.place import Sample, Snapshot


class StandalonePlace:
    """Trains on the checkpoint that the host has loaded."""

    def __init__(self, host: StandaloneHost) -> None:
        self.host = host
        self._trainable: StandaloneTrainable | None = None

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """As `Place.reserved`."""
        with self.host.reserved(f"The training of {name}"):
            try:
                yield
            finally:
                self._trainable = None
                self.host.take_off()  # samples had the network of the run on

    @contextmanager
    def turn(self, stop: threading.Event | None = None) -> Iterator[StandaloneTrainable]:
        """As `Place.turn`."""
        with self.host.exclusive(stop) as model:
            yield self._of(model)

    def _of(self, model: LoadedModel) -> StandaloneTrainable:
        if self._trainable is None or self._trainable.loaded is not model:
            from extensions_lib.hosts.embeddings import Embeddings
            from extensions_lib.hosts.standalone.text import tokens

            known = Embeddings(model.structure, self.host.embeddings, tokens)
            self._trainable = StandaloneTrainable(model, known, [self.host.text_encoder()])
        return self._trainable

    def shown(self, name: str, snapshot: Callable[[], Snapshot]) -> AbstractContextManager[None]:
        """As `Place.shown`."""
        return LIVE.shown(name, snapshot, self.host.model().family)

    def picture(
        self,
        sample: Sample,
        stop: threading.Event | None = None,
        within: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Image.Image:
        """As `Place.picture`."""
        order = GenerationRequest(
            prompt=sample.prompt,
            negative=sample.negative,
            steps=sample.steps,
            cfg=sample.cfg,
            seed=sample.seed,
            width=sample.width,
            height=sample.height,
        )
        if sample.sampler:
            order = replace(order, sampler=sample.sampler)
        if within is None:
            return self.host.generate(order, stop=stop).images[0]
        with self.host.exclusive(stop), self.host.text_encoder().afresh(), within():
            return self.host.generate(order, stop=stop).images[0]

    def folder(self, kind: str) -> Path:
        """As `Place.folder`."""
        root = self.host.root
        return {
            "network": Path(self.host.network_folders()[0]),
            "embedding": root / "embeddings",
            "hypernetwork": root / "models" / "hypernetworks",
            "checkpoint": root / "models" / "Stable-diffusion",
            "lllite": root / "models" / "ControlNet",
        }[kind]

    def about(self) -> Mapping[str, Any]:
        """As `Place.about`."""
        path = self.host.checkpoint
        cache = self.host.root / "cache"
        cfg = self.host.default_cfg()
        return {"name": path.name, "path": path, "cfg": cfg, "cache": cache}

    def new_files(self) -> None:
        """As `Place.new_files`."""
        host = self.host
        for library in (host.library, host.embeddings, host.hypernetworks, host.lllites):
            library.refresh()
