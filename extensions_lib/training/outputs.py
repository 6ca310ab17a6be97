"""The files of a run: its options, samples, states and networks, each where people look for it.

outputs/training/NAME/options.toml   what it was begun with
                      record.jsonl   losses, samples, files (record.py)
                      samples/       pictures made on the way
                      saved/         networks saved on the way
                      states/        from which it goes on
models/Lora/NAME.safetensors         the network, with NAME.json and its preview NAME.png
"""

from __future__ import annotations

import json
import shutil
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.atomic import atomic_write, write_text
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import changed
from extensions_lib.training.metadata import (
    free_name,
    training_metadata,
    user_notes,
)
from extensions_lib.training.toml_text import toml_text

if TYPE_CHECKING:
    from PIL import Image

    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.training.data import TrainingData
    from extensions_lib.training.loop import Loop
    from extensions_lib.training.options import TrainingOptions

OPTIONS = "options.toml"


class Outputs:
    """Writes the files of one run into `folder`, and what is finished into `target`."""

    def __init__(self, options: TrainingOptions, folder: Path, target: Path, suffix: str) -> None:
        self.options, self.folder, self.suffix = options, folder, suffix
        self.final = target / f"{options.output_name}{suffix}"
        self.states, self.samples = folder / "states", folder / "samples"
        self._started = time.time()
        self._last_sample: Path | None = None

    def refuse_to_replace(self) -> None:
        """Raises CrucibleError where a network of this name exists, with a name that is free."""
        if self.final.exists():
            free = free_name(self.final.parent, self.options.output_name, self.suffix)
            raise CrucibleError(
                f"{self.final} exists: choose another name, such as {free}, or move it away."
            )

    def write_options(self) -> None:
        """Writes what differs from the defaults. Raises FileProblem."""
        try:
            for folder in (self.folder, self.states, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileProblem(f"{self.folder}: cannot be made ({error.strerror}).") from None
        write_text(self.folder / OPTIONS, toml_text(changed(self.options)))

    def write_sample(self, picture: Image.Image, step: int, number: int) -> Path:
        """Writes a picture of the samples of a step. Raises FileProblem."""
        path = self.samples / f"step-{step:08d}-{number}.png"
        with atomic_write(path) as temporary:
            picture.save(temporary, format="PNG")
        if number == 0:
            self._last_sample = path
        return path

    def write(self, loop: Loop, data: TrainingData, *, final: bool) -> Path:
        """Writes what is learnt; on the way into `saved`, where old ones go. Raises FileProblem."""
        import torch

        path = self.final if final else self._on_the_way(loop.done)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileProblem(f"{path.parent}: cannot be made ({error.strerror}).") from None
        metadata = {} if self.options.no_metadata else self._metadata(loop, data)
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
        values = loop.values()
        loop.recipe.save(path, metadata, kinds[self.options.save_precision], values)
        if final:
            self._write_beside(path, data)
        else:
            self._drop_old(loop)
        return path

    def about(self, model: LoadedModel) -> None:
        """What the file will say of its base."""
        self._model = model

    def _metadata(self, loop: Loop, data: TrainingData) -> dict[str, str]:
        return training_metadata(
            self.options,
            self._model,
            data,
            steps=loop.done,
            epoch=loop.epoch,
            started=self._started,
            now=time.time(),
            session=self.options.seed,
        )

    def _write_beside(self, path: Path, data: TrainingData) -> None:
        """Notes and preview for its card, where there are none."""
        notes, preview = path.with_suffix(".json"), path.with_suffix(".png")
        if not notes.exists():
            said = user_notes(self.options, self._model.family, data.pictures)
            write_text(notes, json.dumps(said, indent=4, ensure_ascii=False) + "\n")
        if self._last_sample is not None:
            with atomic_write(preview) as temporary:
                shutil.copyfile(self._last_sample, temporary)

    def _on_the_way(self, step: int) -> Path:
        return self.folder / "saved" / f"{self.options.output_name}-step{step:08d}{self.suffix}"

    def _drop_old(self, loop: Loop) -> None:
        """Of those saved on the way keeps what save_last_n_… says, counted as sd-scripts does.

        By steps: what is no older than so many. By epochs: so many of those that are saved.
        """
        options, done = self.options, loop.done
        if options.save_last_n_steps:
            first = Fraction(done - options.save_last_n_steps)
        elif options.save_last_n_epochs:
            epochs = options.save_last_n_epochs * (options.save_every_n_epochs or 1)
            first = (int(done / loop.per_epoch) - epochs + 1) * loop.per_epoch
        else:
            return
        for path in (self.folder / "saved").glob(f"*-step????????{self.suffix}"):
            if int(path.stem[-8:]) < first:
                path.unlink(missing_ok=True)


def copy_to(saved: Path, target: Path) -> Path:
    """Copies a network that was saved on the way to where finished ones are, under a free name."""
    path = target / f"{free_name(target, saved.stem, saved.suffix)}{saved.suffix}"
    with atomic_write(path) as temporary:
        shutil.copyfile(saved, temporary)
    return path
