"""What a training run asks of the program it is in: its model in turns, its pictures, its folders.

A host makes one; training knows no host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from extensions_lib.models.trainable import Trainable


@dataclass(frozen=True)
class Sample:
    """A picture to be made between two steps. `width`, `height` None: the checkpoint's own."""

    prompt: str
    negative: str = ""
    width: int | None = None
    height: int | None = None
    steps: int = 20
    cfg: float = 7.0
    seed: int = 1
    sampler: str = ""  # "": the host's own choice
    control: Path | None = None  # the condition picture, for what is trained to follow one


@dataclass(frozen=True)
class Snapshot:
    """A network as it is now: adapters by layer. `version` differs where the content does."""

    adapters: Mapping[str, Any]
    version: int


class Place(Protocol):
    """The program that a run is in. Calls come from the run's own thread."""

    def reserved(self, name: str) -> AbstractContextManager[None]:
        """While it lasts, the checkpoint stays and no other run begins.

        Raises CrucibleError where another run has it.
        """

    def turn(self, stop: threading.Event | None = None) -> AbstractContextManager[Trainable]:
        """The model with nothing on it, for this caller alone, after whoever asked before.

        Raises Stopped where `stop` is set while another has it.
        """

    def shown(self, name: str, snapshot: Callable[[], Snapshot]) -> AbstractContextManager[None]:
        """While it lasts, prompts may name the network `name`, which is what `snapshot` says then.

        `snapshot` is called in a turn, so no step is under way.
        """

    def picture(
        self,
        sample: Sample,
        stop: threading.Event | None = None,
        within: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Image.Image:
        """A picture by the host's own way from prompt to picture, outside of a turn.

        `within` is entered in the turn of its own: it puts what is trained on the model. Nothing
        that was encoded before is used then, and nothing that is encoded in it stays.
        """

    def folder(self, kind: str) -> Path:
        """Where finished files go: of a network, embedding, hypernetwork, checkpoint or lllite."""

    def about(self) -> Mapping[str, Any]:
        """The checkpoint, which is not loaded for it: "name", "path", and the "cfg" that suits.

        Also, where there are any: "cache", the folder for what is kept of files, and "text", what
        the encoding of prompts follows from besides weights, such as settings of the host.
        """

    def new_files(self) -> None:
        """A file was written into one of these folders: they are looked through again."""
