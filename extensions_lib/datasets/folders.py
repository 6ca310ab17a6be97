"""The folders of a training set: kohya's `10_sls 1girl`, or pictures as they lie."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from extensions_lib.datasets.options import DataOptions
from extensions_lib.datasets.pictures import PictureProblem, find

_KOHYA = re.compile(r"(\d+)(?:_(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Subset:
    """A folder of pictures with what holds for it.

    `num_repeats`: None as the run's options say. `class_tokens` is the prompt of pictures without
    a caption. Subsets of one `dataset` share batches and regularisation. `overrides`: options of
    `DataOptions` by name that are others for it. `metadata_file`: captions as sd-scripts' JSON
    for fine-tuning, instead of text files; then the folder may be None.
    """

    folder: Path | None
    num_repeats: int | None = None
    class_tokens: str | None = None
    is_reg: bool = False
    dataset: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    metadata_file: Path | None = None

    @property
    def name(self) -> str:
        """What to call it."""
        named = self.folder or self.metadata_file
        return named.name if named else ""

    def settings(self, options: DataOptions) -> DataOptions:
        """The options that hold for it, of a run with these."""
        repeats = {} if self.num_repeats is None else {"num_repeats": self.num_repeats}
        return replace(options, **{**self.overrides, **repeats})


def read_folder(
    path: str | os.PathLike[str], *, is_reg: bool = False, notes: list[str] | None = None
) -> list[Subset]:
    """The subsets of a folder: each subfolder named like `10_sls 1girl`; or the folder itself.

    A folder that has such a name itself is one of that kind. If there are no pictures but in
    subfolders of other names, each of these is one. What is left out is said in `notes`. Raises
    PictureProblem for no folder, or one without pictures.
    """
    root, said = Path(path), [] if notes is None else notes
    loose = find(root)
    below = _subfolders(root)
    named = {folder: match for folder in below if (match := _KOHYA.fullmatch(folder.name))}
    found = []
    for folder, match in named.items():
        if not int(match[1]):
            said.append(f"{folder}: is left out, since its name says 0 repeats.")
        elif find(folder):
            found.append(_named(folder, match, is_reg))
        else:
            said.append(f"{folder}: is left out, since there are no pictures in it.")
    if found:
        said += [
            f"{folder}: is left out; name it with a number, as 10_{folder.name}, to train on it."
            for folder in below
            if folder not in named and find(folder)
        ]
        if loose:
            said.append(
                f"{root}: {len(loose)} pictures beside the folders with a number are left out."
            )
        return found
    if loose:
        match = _KOHYA.fullmatch(root.resolve().name)
        if match and match[2] and int(match[1]):
            return [_named(root, match, is_reg)]
        return [Subset(root, is_reg=is_reg)]
    found = [Subset(folder, is_reg=is_reg) for folder in below if find(folder)]
    if not found:
        raise PictureProblem(f"{root}: there are no pictures in it; name a folder of pictures.")
    return found


def subsets_of(options: DataOptions, notes: list[str] | None = None) -> list[Subset]:
    """The subsets that the options name. Raises CrucibleError, also where they name none."""
    from extensions_lib.datasets.dataset_file import read_dataset_file

    if options.dataset_config:
        if options.train_data_dir or options.reg_data_dir:
            raise PictureProblem(
                "dataset_config names the pictures; leave train_data_dir and reg_data_dir empty."
            )
        return read_dataset_file(options.dataset_config)
    if not options.train_data_dir:
        raise PictureProblem("train_data_dir: name the folder of pictures to train on.")
    found = read_folder(options.train_data_dir, notes=notes)
    if options.reg_data_dir:
        found += read_folder(options.reg_data_dir, is_reg=True, notes=notes)
    return found


def _named(folder: Path, match: re.Match[str], is_reg: bool) -> Subset:
    return Subset(folder, int(match[1]), match[2] or None, is_reg)


def _subfolders(root: Path) -> list[Path]:
    """The folders in it, but for hidden ones, by name."""
    with os.scandir(root) as listing:
        names = [item.name for item in listing if item.is_dir() and not item.name.startswith(".")]
    return [root / name for name in sorted(names)]
