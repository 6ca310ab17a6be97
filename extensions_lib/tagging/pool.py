"""The models that are loaded, each once, for all who ask: tab, shell and REST."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.options import checked, option

if TYPE_CHECKING:
    from extensions_lib.tagging.hub import OnProgress
    from extensions_lib.tagging.run import Run
    from extensions_lib.tagging.runners import Runner

DEMO = "demo-tagger"


@dataclass(frozen=True)
class Models:
    """Which models are asked, and where they run."""

    tagger: tuple[str, ...] = option((), "taggers by name; none: one that is here")
    captioner: tuple[str, ...] = option((), "captioners, or CLIP interrogators, by name")
    caption: tuple[str, ...] = option(
        (), "options of captioners, each as prompt=a photo of", group="Models"
    )
    device: str = option(
        "auto", "auto, cpu, or gpu", choices=("auto", "gpu", "cpu"), group="Models"
    )
    download: bool = option(False, "get models that are not here from the hub", group="Models")
    mirror: str = option("", "the hub's address, for a mirror of it", group="Models")


@dataclass
class Pool:
    """Loaded models below `models`, by name and way; safe to use from several threads.

    `threads` are the CPU's for taggers, None: all cores. `cache` keeps what the interrogator
    computed of its words.
    """

    models: Path
    cache: Path | None = None
    threads: int | None = None
    _loaded: dict[tuple[str, str], Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def runners(
        self, wanted: Models, run: Run, on_progress: OnProgress | None = None
    ) -> list[Runner]:
        """What the pipeline runs, taggers first. Raises CrucibleError naming what is missing."""
        from extensions_lib.tagging.runners import CaptionRunner, TaggerRunner

        names = wanted.tagger or (() if wanted.captioner else (default_tagger(self.models),))
        found: list[Runner] = []
        for name in dict.fromkeys(names):
            tagger = self.tagger(name, wanted, on_progress)
            found.append(TaggerRunner(tagger, run.batch, run.draft))
        for name in dict.fromkeys(wanted.captioner):
            found.append(CaptionRunner(self.captioner(name, wanted, on_progress)))
        return found

    def tagger(
        self, name: str, wanted: Models | None = None, on_progress: OnProgress | None = None
    ) -> Any:
        """The tagger of this name, loaded if it is not. Raises CrucibleError."""
        from extensions_lib.tagging.taggers import load_tagger

        wanted = wanted or Models()
        return self._once(
            (name, wanted.device),
            lambda: load_tagger(
                name,
                self.models,
                device=wanted.device,
                threads=self.threads or os.cpu_count(),  # named, they sleep while they wait
                download=wanted.download,
                endpoint=wanted.mirror or None,
                on_progress=on_progress,
            ),
        )

    def captioner(self, name: str, wanted: Models, on_progress: OnProgress | None = None) -> Any:
        """The captioner or interrogator of this name, as `tagger`."""
        from extensions_lib.tagging import captioners, interrogator

        told = {"device": {"gpu": "cuda"}.get(wanted.device, wanted.device), **_pairs(wanted)}
        common: dict[str, Any] = {
            "download": wanted.download,
            "endpoint": wanted.mirror or None,
            "on_progress": on_progress,
        }

        def load() -> Any:
            if name in {each.name for each in interrogator.entries(self.models)}:
                options = checked(interrogator.InterrogateOptions, told)
                return interrogator.load_interrogator(
                    name, self.models, options, cache=self.cache, **common
                )
            writing = checked(captioners.CaptionOptions, told)
            return captioners.load_captioner(name, self.models, writing, **common)

        return self._once((name, repr(sorted(told.items()))), load)

    def _once(self, key: tuple[str, str], load: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load()
            return self._loaded[key]

    def unload(self) -> int:
        """Frees the memory of all models; how many there were."""
        with self._lock:
            count = len(self._loaded)
            while self._loaded:
                self._loaded.popitem()[1].close()
            return count


def default_tagger(models: Path) -> str:
    """A tagger that is on this machine, the demo last. Raises FileProblem where there is none."""
    from extensions_lib.tagging.hub import is_here
    from extensions_lib.tagging.manifest import entries

    here = [entry.name for entry in entries(models) if is_here(entry)]
    if not here:
        raise FileProblem(
            f"There is no tagger in {models}: name one of the known ones and allow its download, or"
            " put a folder with an ONNX and its tag list there."
        )
    return min(here, key=lambda name: name == DEMO)


def _pairs(wanted: Models) -> Mapping[str, str]:
    return {
        name.strip(): value for name, _, value in (one.partition("=") for one in wanted.caption)
    }
