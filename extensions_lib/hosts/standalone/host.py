"""The standalone host: its checkpoints, the loaded model, and one queue in front of it.

Making one costs nothing: torch and the model are loaded when something is asked of them.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.hosts.base import GenerationRequest, GenerationResult, OnProgress
from extensions_lib.hosts.standalone.turns import Turns
from extensions_lib.hosts.stated import CFG_KEY, SIDES, SIZE_KEY, cfg_of, size_of

if TYPE_CHECKING:
    from extensions_lib.hosts.embeddings import Embeddings
    from extensions_lib.hosts.standalone.generate import Generator
    from extensions_lib.hosts.standalone.text import TextEncoder
    from extensions_lib.library import Library
    from extensions_lib.models.families import Structure
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.prompts.chunks import Finder

ROOT = Path(__file__).resolve().parents[3]
SUFFIXES = (".safetensors", ".ckpt")


class StandaloneHost:
    """Samples with diffusers.

    `root` holds models/Stable-diffusion, models/demo, models/Lora, models/ControlNet,
    models/hypernetworks and embeddings (or models/embeddings).
    `checkpoint` None takes the demo checkpoint, or else the first one found. `threads` sets how
    many CPU threads torch uses (None: torch's own choice), `originals` how many GB of clean weights
    stay on the device beside merged ones (None: as it has room). Calls queue: one user at a time.
    """

    name = "Crucible"

    def __init__(
        self,
        checkpoint: Path | str | None = None,
        root: Path | str = ROOT,
        *,
        threads: int | None = None,
        device: str | None = None,
        originals: float | None = None,
    ) -> None:
        self.root, self.originals = Path(root), originals
        self._threads = threads
        self._device = device
        self._turns = Turns()
        self._reserved = ""
        self._generator: Generator | None = None
        self._libraries: dict[str, Library] = {}
        self._shelving = threading.Lock()
        self._counter: tuple[Structure, Embeddings] | None = None
        self._path: Path | None = None
        if checkpoint is not None:
            self._path = self.find_checkpoint(checkpoint)

    def checkpoints(self) -> list[Path]:
        """The checkpoint files: the demo first, then models/Stable-diffusion with subfolders."""
        demo = self.root / "models" / "demo" / "demo.safetensors"
        folder = self.root / "models" / "Stable-diffusion"
        found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        others = sorted((path for path in found if path.is_file()), key=lambda p: str(p).lower())
        return [demo, *others] if demo.is_file() else others

    def find_checkpoint(self, name: Path | str) -> Path:
        """A checkpoint by its path, file name or stem.

        Raises FileProblem, naming what there is, when it is not found.
        """
        path = Path(name)
        if path.is_file():
            return path
        known = self.checkpoints()
        for match in known:
            if str(name).lower() in (match.name.lower(), match.stem.lower()):
                return match
        names = ", ".join(match.name for match in known) or "none"
        raise FileProblem(f"{name}: no such checkpoint; there are: {names}.")

    @property
    def checkpoint(self) -> Path:
        """The checkpoint in use. Raises FileProblem when there is none at all."""
        if self._path is None:
            known = self.checkpoints()
            if not known:
                folder = self.root / "models" / "Stable-diffusion"
                raise FileProblem(f"{folder}: no checkpoint found; put a .safetensors file there.")
            self._path = known[0]
        return self._path

    def use_checkpoint(self, name: Path | str) -> None:
        """Switches to another checkpoint; the old model is freed, the new one loads when needed.

        Raises FileProblem when there is no such file, CrucibleError while one is reserved.
        """
        path = self.find_checkpoint(name)
        with self._turns.turn():
            if self._path is not None and path.resolve() == self._path.resolve():
                return
            if self._reserved:
                raise CrucibleError(
                    f"{self._reserved} uses {self.checkpoint.name}: stop it before you switch to "
                    f"{path.name}."
                )
            self._unload()
            self._path = path

    def default_size(self) -> tuple[int, int]:
        """Width and height for new pictures: what the checkpoint's metadata says, or its family.

        Raises FileProblem when the checkpoint cannot be read.
        """
        from extensions_lib.files.checkpoints import checkpoint_structure

        if stated := size_of(self._stated(SIZE_KEY)):
            return stated
        path, generator = self.checkpoint, self._generator
        if generator is not None and generator.model.path == path:
            side = SIDES[generator.model.family.value]
        else:
            side = SIDES[checkpoint_structure(path).family.value]
        return side, side

    def default_cfg(self) -> float:
        """The CFG scale for new pictures: what the checkpoint's metadata says, or 7.

        Raises FileProblem when the checkpoint cannot be read.
        """
        return cfg_of(self._stated(CFG_KEY))

    def _stated(self, key: str) -> str:
        """A value of the checkpoint's metadata, "" if it has none."""
        from extensions_lib.files.safe import read_header

        path, generator = self.checkpoint, self._generator
        if generator is not None and generator.model.path == path:
            return generator.model.metadata.get(key, "")
        if path.suffix.lower() != ".safetensors":
            return ""
        return read_header(path).metadata.get(key, "")

    def network_folders(self) -> Sequence[Path]:
        return [self.root / "models" / "Lora"]

    @property
    def library(self) -> Library:
        """The network files; made at first use."""
        return self._shelved("networks")

    @property
    def embeddings(self) -> Library:
        """The embedding files; made at first use."""
        return self._shelved("embeddings")

    @property
    def hypernetworks(self) -> Library:
        """The hypernetwork files; made at first use."""
        return self._shelved("hypernetworks")

    @property
    def aesthetics(self) -> Library:
        """The aesthetic embeddings; made at first use."""
        return self._shelved("aesthetics")

    @property
    def lllites(self) -> Library:
        """The ControlNet-LLLite files; made at first use."""
        return self._shelved("lllites")

    def _shelved(self, kind: str) -> Library:
        # its own lock: a page asks for these while a picture is made
        with self._shelving:
            if kind not in self._libraries:
                from extensions_lib.library import (
                    AESTHETICS,
                    EMBEDDINGS,
                    HYPERNETWORKS,
                    LLLITES,
                    NETWORKS,
                    Library,
                )

                models = self.root / "models"
                folders, shelf = {
                    "networks": (self.network_folders(), NETWORKS),
                    "embeddings": (
                        [self.root / "embeddings", models / "embeddings"],
                        EMBEDDINGS,
                    ),
                    "hypernetworks": ([models / "hypernetworks"], HYPERNETWORKS),
                    "aesthetics": ([models / "aesthetic_embeddings"], AESTHETICS),
                    "lllites": ([models / "ControlNet", *self.network_folders()], LLLITES),
                }[kind]
                self._libraries[kind] = Library(folders, self.root / "cache", shelf)
            return self._libraries[kind]

    def embedding_finder(self) -> Finder:
        """What `prompts.chunks.chunk_tokens` asks, to count as the next picture would.

        Raises FileProblem when the checkpoint or the tokenizer cannot be read.
        """
        from extensions_lib.files.checkpoints import checkpoint_structure
        from extensions_lib.hosts.embeddings import Embeddings
        from extensions_lib.hosts.standalone.text import tokens

        path, generator = self.checkpoint, self._generator
        if generator is not None and generator.model.path == path:
            structure = generator.model.structure
        else:
            structure = checkpoint_structure(path)
        if self._counter is None or self._counter[0] != structure:
            self._counter = structure, Embeddings(structure, self.embeddings, tokens)
        counter = self._counter[1]
        counter.begin()
        return counter.finder()

    def model(self) -> LoadedModel:
        """The loaded checkpoint. Raises FileProblem when it cannot be loaded."""
        with self._turns.turn():
            return self._ready().model

    @contextmanager
    def reserved(self, user: str) -> Iterator[None]:
        """Until the block ends the checkpoint in use stays. Raises CrucibleError where it is taken.

        `user` is who has it, in words.
        """
        with self._turns.turn():
            if self._reserved:
                raise CrucibleError(f"{self._reserved} has the checkpoint: stop it first, or wait.")
            self._path, self._reserved = self.checkpoint, user
        try:
            yield
        finally:
            self._reserved = ""

    @contextmanager
    def exclusive(self, stop: threading.Event | None = None) -> Iterator[LoadedModel]:
        """The model for one caller alone, with no network applied, until the block ends.

        Raises Stopped when `stop` is set while another caller has it.
        """
        with self._turns.turn(stop):
            generator = self._ready()
            generator.park()
            yield generator.model

    def text_encoder(self) -> TextEncoder:
        """What encodes the prompts of pictures."""
        with self._turns.turn():
            return self._ready().text

    def generate(
        self,
        request: GenerationRequest,
        on_progress: OnProgress | None = None,
        stop: threading.Event | None = None,
    ) -> GenerationResult:
        """Makes the pictures, after those of whoever came before.

        Raises CrucibleError for what cannot be made, Stopped when nothing was finished.
        """
        with self._turns.turn(stop):
            return self._ready().generate(request, self.default_size(), on_progress, stop)

    def take_off(self) -> None:
        """Takes all networks off the model and frees their memory."""
        with self._turns.turn():
            if self._generator is not None:
                self._generator.release()

    def close(self) -> None:
        """Frees the model; it loads again when needed."""
        with self._turns.turn():
            self._unload()

    def _ready(self) -> Generator:
        if self._generator is None:
            import torch

            from extensions_lib.hosts.standalone.generate import Generator
            from extensions_lib.hosts.standalone.load import load_checkpoint

            if self._threads is not None:
                torch.set_num_threads(max(1, self._threads))
            model = load_checkpoint(self.checkpoint, device=self._device)
            self._generator = Generator(model, self)
        return self._generator

    def _unload(self) -> None:
        if self._generator is None:
            return
        import torch

        self._generator.release()
        self._generator = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
