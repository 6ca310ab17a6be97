"""A training set as the loop sees it: every batch a function of the epoch, its number and a seed.

data = read_training_data(subsets_of(options), options, Run(seed=0, steps=1000))
data.prepare(model)
data.batch(epoch, index, generator)
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from extensions_lib.datasets.at_once import Note, Progress
from extensions_lib.datasets.augment import DRAWS, guide_of
from extensions_lib.datasets.folders import Subset, read_folder
from extensions_lib.datasets.items import Facts, Picture, find_pictures
from extensions_lib.datasets.options import DataOptions, contradictions
from extensions_lib.datasets.plan import Plan, Planned, held_out
from extensions_lib.datasets.prompts import prompt_of, variants
from extensions_lib.errors import CrucibleError
from extensions_lib.models.trainable import Trainable
from extensions_lib.options import options_of
from extensions_lib.training.encoding import Encoder, TextOptions
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
            f"{count} cannot be trained on. Mend or remove them, or leave them out"
            " (leave_out_broken):\n" + "\n".join(lines)
        )


@dataclass(frozen=True)
class Run:
    """What of a run its data follows from: `steps` of the optimizer, of `accumulation` batches."""

    seed: int = 0
    steps: int = 1
    accumulation: int = 1


def read_training_data(
    subsets: Sequence[Subset],
    options: DataOptions,
    run: Run | None = None,
    text: TextOptions | None = None,
    *,
    facts: Facts | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> TrainingData:
    """Finds the pictures of the subsets, and looks at each.

    Raises BrokenPictures, unless they are to be left out; CrucibleError for options that
    contradict each other, folders that cannot be read, and sets without a picture; Stopped.
    """
    run = run or Run()
    against = {
        said: None for subset in subsets for said in contradictions(subset.settings(options))
    }
    if against:
        raise CrucibleError("\n".join(against))

    def look(some: Sequence[Subset]) -> tuple[Sequence[Picture], Sequence[Note]]:
        found = find_pictures(some, options, facts=facts, on_progress=on_progress, stop=stop)
        return found.pictures, found.broken

    pictures, broken = look(subsets)
    if options.validation_data_dir:
        measured, also = look(read_folder(options.validation_data_dir))
        broken = [*broken, *also]
    else:
        pictures, measured = _split(pictures, run.seed)
    if broken and not options.leave_out_broken:
        raise BrokenPictures(broken)
    if all(picture.subset.is_reg for picture in pictures):
        raise CrucibleError("There are no pictures to train on; check the folders.")
    encoder = Encoder(options, text)
    validation = None
    if measured:
        calm = [replace(each, options=_calm(each.options)) for each in measured]
        validation = TrainingData(calm, run, encoder, fixed=True)
    return TrainingData(pictures, run, encoder, validation=validation, broken=broken)


class TrainingData:
    """The batches of a set of pictures; as `step.Data`. `prepare` comes first.

    `validation` holds what is measured on, None if nothing is; `broken` what was left out.
    `fixed`: each picture once, the same batches and prompts in every epoch, for measuring.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        run: Run,
        encoder: Encoder,
        *,
        fixed: bool = False,
        validation: TrainingData | None = None,
        broken: Sequence[Note] = (),
    ) -> None:
        self.pictures, self.run, self.fixed = tuple(pictures), run, fixed
        self.validation, self.broken = validation, tuple(broken)
        self.plan = Plan([_planned(picture, fixed) for picture in self.pictures], run.seed)
        self._encoder = encoder
        self._mixed = any(picture.subset.is_reg for picture in self.pictures)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.plan)

    @property
    def identity(self) -> str:
        """A hash of pictures, captions and what is done with them: whether it is the same set."""
        digest = hashlib.blake2b(repr((self.run.seed, self.fixed)).encode(), digest_size=16)
        for each in self.pictures:
            told = each.content, each.caption, each.guide_content, each.where, each.subset.is_reg
            learnt = [getattr(each.options, name) for name in _LEARNT]
            digest.update(repr((*told, each.subset.class_tokens, learnt)).encode())
        return digest.hexdigest()

    @property
    def notes(self) -> list[str]:
        """What was found broken in caches."""
        return self._encoder.notes

    def prepare(
        self,
        model: Trainable,
        on_progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Encodes what is encoded once, by the model as it is before anything is trained on it.

        Also that of `validation`. Raises as `Encoder.prepare`.
        """
        pictures, prompts = self.encoded_once
        self._encoder.prepare(model, pictures, prompts, on_progress, stop)

    @property
    def encoded_once(self) -> tuple[list[Picture], list[str]]:
        """The pictures that `prepare` encodes, and the prompts; also those of `validation`."""
        parts = [self, self.validation] if self.validation else [self]
        pictures = [each for part in parts for each in part.used]
        prompts = [
            prompt
            for each in pictures
            for prompt in variants(each.caption, each.options, each.subset.class_tokens)
        ]
        return pictures, prompts

    @property
    def used(self) -> list[Picture]:
        """The pictures that come in an epoch; of regularisation there may be too many."""
        counted = zip(self.pictures, self.plan.counts, strict=True)
        return [each for each, count in counted if count]

    def prompt(self, item: int, epoch: int, step: int = 0) -> str:
        """The prompt of an item (as in `plan`) in an epoch, from 0, at a step of the optimizer."""
        picture = self.pictures[self.plan.pictures[item]]
        return prompt_of(
            picture.caption,
            picture.options,
            picture.subset.class_tokens,
            seed=self.run.seed,
            epoch=epoch,
            item=item,
            step=step,
            steps=self.run.steps,
        )

    def _of(self, items: Sequence[int]) -> list[Picture]:
        return [self.pictures[self.plan.pictures[item]] for item in items]

    def batch(self, epoch: int, index: int, generator: torch.Generator) -> Batch:
        """As `Data.batch`. The mask is at the latents' size. Raises CrucibleError where a picture
        cannot be read any more.
        """
        step = (epoch * len(self) + index) // self.run.accumulation
        epoch = 0 if self.fixed else epoch
        items = self.plan.order(epoch)[index]
        chosen = self._of(items)
        draws = torch.rand(len(items), DRAWS, generator=generator).tolist()
        encoded = self._encoder.pictures(chosen, draws)
        if index + 1 < len(self):
            self._encoder.expect(self._of(self.plan.order(epoch)[index + 1]))
        # drawn each time, as the VAE would, whether the latents are cached or not
        noise = torch.randn(encoded.mean.shape, generator=generator)
        prompts = tuple(self.prompt(item, epoch, step) for item in items)
        regular = [picture.subset.is_reg for picture in chosen]
        return Batch(
            torch.addcmul(encoded.mean, encoded.deviation, noise),
            prompts,
            tuple(picture.name for picture in chosen),
            mask=encoded.mask,
            regularisation=torch.tensor(regular) if self._mixed else None,
            sizes=encoded.sizes,
            conditioning=self._encoder.prompts(prompts),
            control=_guides(chosen, None if self.fixed else draws),
        )


def _guides(
    pictures: Sequence[Picture], draws: Sequence[Sequence[float]] | None
) -> torch.Tensor | None:
    """[B, 3, H, W] from −1 to 1: the condition pictures; None unless each picture has one."""
    found = []
    for number, picture in enumerate(pictures):
        guide = guide_of(picture, draws[number] if draws else None)
        if guide is None:
            return None
        found.append(torch.tensor(guide.copy()))
    pixels = torch.stack(found)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _planned(picture: Picture, fixed: bool) -> Planned:
    options, subset = picture.options, picture.subset
    if fixed:
        return Planned(picture.where.bucket, batch_size=options.train_batch_size)
    return Planned(
        picture.where.bucket,
        options.num_repeats,
        subset.is_reg,
        options.train_batch_size,
        subset.dataset,
    )


def _split(pictures: Sequence[Picture], seed: int) -> tuple[Sequence[Picture], Sequence[Picture]]:
    """Those to train on and those held out; each data set has its own share and seed.

    Pictures of one content are held out together, so that nothing that is learnt is measured.
    """
    kept, measured = [], []
    for dataset in dict.fromkeys(each.subset.dataset for each in pictures):
        those = [each for each in pictures if each.subset.dataset == dataset]
        options = those[0].options
        own = seed if options.validation_seed is None else options.validation_seed
        contents = dict.fromkeys(each.content for each in those if not each.subset.is_reg)
        out = held_out(list(contents), options.validation_split, own)
        apart = [not each.subset.is_reg and each.content in out for each in those]
        kept += [each for each, away in zip(those, apart, strict=True) if not away]
        measured += [each for each, away in zip(those, apart, strict=True) if away]
    return kept, measured


def _calm(options: DataOptions) -> DataOptions:
    """The options without what is left to chance, but for wildcards."""
    return replace(
        options,
        flip_aug=False,
        color_aug=False,
        random_crop=False,
        face_crop_aug_range=(),
        shuffle_caption=False,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        token_warmup_step=0.0,
    )


# Where things lie and are kept changes nothing that is learnt.
_LEARNT = [
    each.name
    for each in options_of(DataOptions)
    if each.group != "Caches" and not each.name.endswith("_dir") and each.name != "dataset_config"
]
