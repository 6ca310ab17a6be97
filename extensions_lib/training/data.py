"""A training set as the loop sees it: every batch a function of the epoch, its number and a seed.

    data = read_training_data(subsets_of(options), options, seed=0, steps=1000)
    data.prepare(model)
    data.batch(epoch, index, generator)
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extensions_lib.datasets import augment
from extensions_lib.datasets.at_once import Note, Progress, at_once
from extensions_lib.datasets.augment import Seen
from extensions_lib.datasets.folders import Subset, read_folder
from extensions_lib.datasets.items import Facts, Picture, find_pictures
from extensions_lib.datasets.options import DataOptions, contradictions
from extensions_lib.datasets.plan import Plan, Planned, held_out
from extensions_lib.datasets.prompts import prompt_of, variants
from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.models.trainable import Conditioning, Trainable
from extensions_lib.training.caches import (
    Cache,
    InMemory,
    OnDisk,
    Tensors,
    latent_key,
    text_identity,
    text_key,
    vae_identity,
)
from extensions_lib.training.step import Batch

_SAID = 10  # broken pictures that an error names


class BrokenPictures(CrucibleError):
    """Pictures that cannot be trained on; `notes` has each with its reason."""

    def __init__(self, notes: Sequence[Note]) -> None:
        self.notes = tuple(notes)
        lines = [note.reason for note in notes[:_SAID]]
        if len(notes) > _SAID:
            lines.append(f"… and {len(notes) - _SAID} more.")
        count = "One picture" if len(notes) == 1 else f"{len(notes)} pictures"
        super().__init__(
            f"{count} cannot be trained on; mend or remove them, or leave them out"
            " (leave_out_broken):\n" + "\n".join(lines)
        )


@dataclass(frozen=True)
class Run:
    """What of a run its data depends on. `steps` are the optimizer's, of `accumulation` batches.

    `chunks` times 75 tokens of a prompt are read. `text_settings`: what the host's encoding of
    prompts depends on besides the weights; kept with cached prompts.
    """

    seed: int = 0
    steps: int = 1
    accumulation: int = 1
    clip_skip: int = 1
    chunks: int = 3
    text_settings: str = ""


def read_training_data(
    subsets: Sequence[Subset],
    options: DataOptions,
    run: Run | None = None,
    *,
    facts: Facts | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> TrainingData:
    """Finds and looks at all pictures of the subsets.

    Raises BrokenPictures, unless they are to be left out; CrucibleError for options that
    contradict each other, folders that cannot be read, and sets without a picture; Stopped.
    """
    run = run or Run()
    against = {
        said: None for subset in subsets for said in contradictions(subset.settings(options))
    }
    if against:
        raise CrucibleError("\n".join(against))
    found = find_pictures(subsets, options, facts=facts, on_progress=on_progress, stop=stop)
    pictures, measured, broken = found.pictures, (), found.broken
    if options.validation_data_dir:
        apart = read_folder(options.validation_data_dir)
        held = find_pictures(apart, options, facts=facts, on_progress=on_progress, stop=stop)
        measured, broken = held.pictures, broken + held.broken
    else:
        pictures, measured = _split(found.pictures, run.seed)
    if broken and not options.leave_out_broken:
        raise BrokenPictures(broken)
    if not any(not picture.subset.is_reg for picture in pictures):
        raise CrucibleError("There are no pictures to train on; check the folders.")
    validation = TrainingData(_calm(measured), run, fixed=True) if measured else None
    return TrainingData(pictures, run, validation=validation, broken=broken)


class TrainingData:
    """The batches of a set of pictures; as `step.Data`. `prepare` comes first.

    `fixed`: the same batches with the same prompts in every epoch, for measuring. `validation`
    holds what is measured on, None if nothing is. `notes` gathers what is to be said.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        run: Run,
        *,
        fixed: bool = False,
        validation: TrainingData | None = None,
        broken: Sequence[Note] = (),
    ) -> None:
        self.pictures, self.run, self.fixed = tuple(pictures), run, fixed
        self.validation, self.broken = validation, tuple(broken)
        self.notes: list[str] = []
        self.plan = Plan([_planned(picture, fixed) for picture in self.pictures], run.seed)
        self._regularised = any(picture.subset.is_reg for picture in self.pictures)
        options = self.pictures[0].options
        root = Path(options.cache_dir) if options.cache_dir else None
        self._latents = _cache(options.cache_latents_to_disk, root, "latents")
        self._states = _cache(options.cache_text_encoder_outputs_to_disk, root, "prompts")
        self._keys: dict[int, str] = {}
        self._encoders = ""
        self._model: Trainable | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.plan)

    # --- before the first step ----------------------------------------------------------------

    def prepare(
        self,
        model: Trainable,
        on_progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Fills the caches, with the model as it is without the network that is trained.

        Raises CrucibleError for a picture that has changed since it was looked at, FileProblem
        where a cache cannot be written, Stopped; what is on disk by then is used the next time.
        """
        self._model = model
        parts = [self, *filter(None, (self.validation,))]
        for part in parts:
            part._model = model
        vae = vae_identity(model.loaded) if any(p._caches_latents for p in parts) else ""
        encoders = ""
        if any(part._caches_text for part in parts):
            encoders = text_identity(model.loaded, self.run.text_settings)
        latents = [(part, number) for part in parts for number in part._without_latents(vae)]
        texts = [(part, text) for part in parts for text in part._without_states(encoders)]
        work, done = len(latents) + len(texts), 0

        for count in _chain(self._encode_pictures(latents, stop), _encode_texts(texts)):
            done += count
            if on_progress:
                on_progress(done, work)
            if stop is not None and stop.is_set():
                raise Stopped("Stopped while encoding pictures and prompts.")
        if isinstance(self._latents, OnDisk):
            self._latents.clear_changed(self.pictures)
        self.notes += [note for part in parts for note in part._found_broken()]
