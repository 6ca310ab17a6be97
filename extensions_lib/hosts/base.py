"""What every host offers, and the plain data that goes in and comes out of a generation.

Nothing here imports torch: faces show these before a model is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from extensions_lib.models.loaded import LoadedModel


@dataclass(frozen=True)
class GenerationRequest:
    """A txt2img order. The prompt holds its `<lora:…>` tags.

    `width` and `height` are pixels, multiples of 8; None takes the checkpoint's own size.
    `seed` −1 draws one; picture i of the whole order has seed + i.
    `cfg` 1 leaves the negative prompt out. `clip_skip` 1 uses CLIP's last layer.
    `prompts`, where there are any, has one for each picture of the order in place of `prompt`, each
    with tags of its own.
    `control` is the condition picture of the prompt's `<lllite:…>` tags.
    """

    prompt: str
    negative: str = ""
    steps: int = 20
    sampler: str = "DPM++ 2M"
    schedule: str = "Automatic"
    cfg: float = 7.0
    seed: int = -1
    width: int | None = None
    height: int | None = None
    batch_size: int = 1
    batch_count: int = 1
    clip_skip: int = 1
    control: Image.Image | None = None
    prompts: tuple[str, ...] = ()


@dataclass
class GenerationResult:
    """The finished pictures, each with its infotext and seed, and what went wrong on the way.

    `messages` are sentences to show at the picture: networks that were missing or did not fit,
    options without effect, a stop.
    """

    images: list[Image.Image] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """Where a generation stands.

    `step` of `steps` counts the current batch; `image` of `images` counts finished pictures;
    `eta_seconds` is measured, None before the first step has been timed.
    """

    step: int
    steps: int
    image: int
    images: int
    eta_seconds: float | None = None
    preview: Image.Image | None = None


OnProgress = Callable[[Progress], None]


class Host(Protocol):
    """A place that owns a checkpoint and can hand out its model or sample pictures with it."""

    name: str

    def model(self) -> LoadedModel:
        """The loaded checkpoint, loading it first if need be."""

    def exclusive(self) -> AbstractContextManager[LoadedModel]:
        """The model for one caller alone, with no network applied, until the block ends."""

    def network_folders(self) -> Sequence[Path]:
        """The folders in which this host looks for network files."""

    def generate(
        self,
        request: GenerationRequest,
        on_progress: OnProgress | None = None,
        stop: threading.Event | None = None,
    ) -> GenerationResult:
        """Makes the pictures. Raises CrucibleError, Stopped when nothing was finished."""
