"""What a training set comes to: for the pre-flight, and for the metadata of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from extensions_lib.datasets.at_once import Note
from extensions_lib.datasets.buckets import Size
from extensions_lib.datasets.items import Picture
from extensions_lib.datasets.options import without_effect
from extensions_lib.training.data import TrainingData

_ENLARGED = 1.5  # by how much is too much


@dataclass(frozen=True)
class DataReport:
    """A training set in numbers and words.

    `items` and `regular` are the pictures of an epoch with their repeats, the second those of
    regularisation. `suffixes` counts captions by the suffix of their file. `uncaptioned` have no
    caption file, `empty` one without text. `prompts` are those of the first epoch with their
    pictures' names. `buckets` counts items by size. `notes` are sentences for the user.
    """

    pictures: int
    items: int
    regular: int
    batches: int
    held_out: int
    suffixes: dict[str, int]
    uncaptioned: tuple[str, ...]
    empty: tuple[str, ...]
    prompts: tuple[tuple[str, str], ...]
    buckets: tuple[tuple[Size, int], ...]
    broken: tuple[Note, ...]
    notes: tuple[str, ...]
    latent_bytes: int


def report(data: TrainingData, most_prompts: int = 200) -> DataReport:
    """The report of a set; the first item of each picture gives one of `most_prompts` prompts."""
    pictures = data.used
    counts = [count for count in data.plan.counts if count]
    files = Counter(each.caption_file.suffix for each in pictures if each.caption_file is not None)
    uncaptioned = tuple(each.name for each in pictures if each.caption is None)
    empty = tuple(
        each.name for each in pictures if each.caption is not None and not each.caption.strip()
    )
    sizes: Counter[Size] = Counter()
    for each, count in zip(pictures, counts, strict=True):
        sizes[each.where.bucket] += count
    firsts: dict[int, int] = {}
    for item, number in enumerate(data.plan.pictures):
        firsts.setdefault(number, item)
    shown = list(firsts.items())[:most_prompts]
    return DataReport(
        len(pictures),
        len(data.plan.pictures),
        sum(count for each, count in zip(pictures, counts, strict=True) if each.subset.is_reg),
        len(data),
        len(data.validation.pictures) if data.validation else 0,
        dict(files),
        uncaptioned,
        empty,
        tuple((data.pictures[number].name, data.prompt(item, 0)) for number, item in shown),
        tuple(sorted(sizes.items())),
        data.broken,
        tuple(_notes(data, pictures, uncaptioned)),
        sum(_latent_bytes(each) for each in pictures if each.options.caches_latents),
    )


def _notes(data: TrainingData, pictures: Sequence[Picture], bare: Sequence[str]) -> list[str]:
    said = [*dict.fromkeys(note for each in pictures for note in without_effect(each.options))]
    if bare:
        named = [each for each in pictures if each.caption is None and each.subset.class_tokens]
        said.append(
            f"{len(bare)} pictures have no caption file; {len(named)} of them learn the folder's"
            f" words, {len(bare) - len(named)} nothing but the picture."
        )
    left = len(data.pictures) - len(pictures)
    if left:
        said.append(f"{left} regularisation pictures are more than are needed, and are left out.")
    large = [each for each in pictures if each.where.scale > _ENLARGED]
    if large:
        worst = max(large, key=lambda each: each.where.scale)
        said.append(
            f"{len(large)} pictures are enlarged {_ENLARGED} times or more, {worst.name}"
            f" {worst.where.scale:.1f} times; lower the resolution, or use bucket_no_upscale."
        )
    return said


def _latent_bytes(picture: Picture) -> int:
    """Mean and deviation in fp32, of the mirrored picture too where it is used."""
    width, height = picture.where.bucket
    return 2 * 4 * 4 * (width // 8) * (height // 8) * (1 + picture.options.flip_aug)


def caption_of(picture: Picture) -> str:
    """What stands for the picture before anything is done to it."""
    return picture.caption if picture.caption is not None else picture.subset.class_tokens or ""


def metadata(data: TrainingData) -> dict[str, Any]:
    """What sd-scripts writes of the data into a file, by its key without `ss_`, as plain values."""
    frequency: dict[str, dict[str, int]] = {}
    dirs: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for each in data.used:
        folder = (each.subset.folder or each.path.parent).name
        known = dirs[each.subset.is_reg].setdefault(
            folder, {"n_repeats": each.options.num_repeats, "img_count": 0}
        )
        known["img_count"] += 1
        tags = frequency.setdefault(folder, {})
        for part in caption_of(each).split(each.options.caption_separator or ","):
            if tag := part.strip().lower():
                tags[tag] = tags.get(tag, 0) + 1
    told = report(data, most_prompts=0)
    buckets = {
        number: {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(told.buckets)
    }
    return {
        "num_train_images": told.items - told.regular,
        "num_reg_images": told.regular,
        "num_batches_per_epoch": len(data),
        "tag_frequency": frequency,
        "dataset_dirs": dirs[0],
        "reg_dataset_dirs": dirs[1],
        "bucket_info": {"buckets": buckets},
    }
