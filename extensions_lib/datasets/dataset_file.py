"""The dataset file of sd-scripts: TOML or JSON with [general], [[datasets]] and their subsets.

A TOML that LoRA_Easy_Training_Scripts saves is one too, by its [[subsets]] and dataset_args.

What is said in a subset holds before what its data set says, and that before [general]; the rest
is as the run's options say. A relative folder is looked for beside the file, then where the
program runs.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from extensions_lib.atomic import reason
from extensions_lib.datasets.folders import Subset
from extensions_lib.datasets.options import (
    AugmentOptions,
    BucketOptions,
    CaptionOptions,
    DataOptions,
)
from extensions_lib.errors import FileProblem
from extensions_lib.options import OptionProblem, options_of

_OPTIONS = {each.name: each for each in options_of(DataOptions)}
_SIZES = {each.name for each in options_of(BucketOptions)}
_EACH = {each.name for kind in (CaptionOptions, AugmentOptions) for each in options_of(kind)}
# Names of the file: the option that each one is.
_OF_DATASET = {
    **{name: name for name in _SIZES},
    "batch_size": "train_batch_size",
    "validation_split": "validation_split",
    "validation_seed": "validation_seed",
}
_OF_SUBSET = {
    **{name: name for name in _EACH},
    "num_repeats": "num_repeats",
    "alpha_mask": "alpha_mask",
    "resize_interpolation": "resize_interpolation",
}
_ONLY_SUBSET = ("image_dir", "metadata_file", "conditioning_data_dir", "is_reg")
_ANYWHERE = ("class_tokens", "cache_info")
_REFUSED = {
    "custom_attributes": "nothing here reads them",
    "network_multiplier": "a network is trained at its full strength",
}


def read_dataset_file(path: str | os.PathLike[str]) -> list[Subset]:
    """The subsets of a dataset file. Raises FileProblem: for a key that there is none of, with the
    nearest; for a value that an option does not take; for a folder that is not there.
    """
    path = Path(path)
    if path.suffix.lower() not in (".toml", ".json"):
        raise FileProblem(f"{path}: is no dataset file; name one that ends in .toml or .json.")
    held = _read_json(path) if path.suffix.lower() == ".json" else read_toml(path)
    if "subsets" in held and "datasets" not in held:
        held = _of_easy_scripts(path, held)
    _known(path, "the file", held, ("general", "datasets"))
    general = _table(path, "[general]", held.get("general", {}))
    _known(path, "[general]", general, {*_OF_DATASET, *_OF_SUBSET, *_ANYWHERE})
    datasets = _tables(path, "[[datasets]]", held.get("datasets"))
    found = []
    for number, dataset in enumerate(datasets):
        where = f"data set {number + 1}"
        _known(path, where, dataset, {*_OF_DATASET, *_OF_SUBSET, *_ANYWHERE, "subsets"})
        subsets = _tables(path, f"[[datasets.subsets]] of {where}", dataset.get("subsets"))
        over = {**general, **{key: value for key, value in dataset.items() if key != "subsets"}}
        for count, subset in enumerate(subsets):
            here = f"subset {count + 1} of {where}"
            _known(path, here, subset, {*_OF_SUBSET, *_ANYWHERE, *_ONLY_SUBSET})
            found.append(_subset(path, here, {**over, **subset}, number))
    _check_twice(path, found)
    return found


def _of_easy_scripts(path: Path, held: Mapping[str, Any]) -> dict[str, Any]:
    """What LoRA_Easy_Training_Scripts saves, as the file that it would hand to sd-scripts."""
    general: dict[str, Any] = {}
    for section in held.values():
        if isinstance(section, dict):
            general |= _table(path, "dataset_args", section.get("dataset_args", {}))
    general.pop("max_token_length", None)  # of the run
    subsets = [
        {key: value for key, value in each.items() if key != "name"}
        for each in _tables(path, "[[subsets]]", held["subsets"])
    ]
    return {"general": general, "datasets": [{"subsets": subsets}]}


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TOML file holds. Raises FileProblem, naming the line."""
    return parse_toml(_text(Path(path)), str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """What a TOML text holds, which is found at `where`. Raises FileProblem, naming the line."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileProblem(f"{where}: is no valid TOML ({error}).") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _table(path, "the file", json.loads(_text(path)))
    except json.JSONDecodeError as error:
        raise FileProblem(f"{path}: is no valid JSON ({error}).") from None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({reason(error)}).") from error
    except UnicodeDecodeError:
        raise FileProblem(f"{path}: is not UTF-8; save it as UTF-8.") from None


def _table(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FileProblem(f"{path}: {where} is to be a table of keys and values.")
    return value


def _tables(path: Path, where: str, value: Any) -> list[dict[str, Any]]:
    if not (isinstance(value, list) and value and all(isinstance(each, dict) for each in value)):
        raise FileProblem(f"{path}: there is no {where}; a dataset file has one at least.")
    return value


def _known(path: Path, where: str, held: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Raises FileProblem for a key that may not stand there."""
    for key, value in held.items():
        if key in _REFUSED and value not in (1, {}):
            raise FileProblem(f"{path}: {key} in {where}: is not supported; {_REFUSED[key]}.")
        if key in allowed or key in _REFUSED:
            continue
        if key in _ONLY_SUBSET:
            raise FileProblem(f"{path}: {key} in {where}: belongs in [[datasets.subsets]].")
        if key in _OF_DATASET:
            raise FileProblem(
                f"{path}: {key} in {where}: belongs in [[datasets]] or [general], since all"
                " pictures of a data set share it."
            )
        near = difflib.get_close_matches(key, allowed, 1)
        said = f" Did you mean {near[0]}?" if near else ""
        raise FileProblem(f"{path}: {key} in {where}: there is no such key.{said}")


def _subset(path: Path, where: str, held: Mapping[str, Any], dataset: int) -> Subset:
    overrides = {}
    for key, value in held.items():
        name = _OF_DATASET.get(key) or _OF_SUBSET.get(key)
        if name is None:
            continue
        if key == "resolution":
            value = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            overrides[name] = _OPTIONS[name].check(value)
        except OptionProblem as problem:
            raise FileProblem(f"{path}: {where}: {problem}") from None
    texts = {}
    for key in ("image_dir", "metadata_file", "conditioning_data_dir", "class_tokens"):
        texts[key] = held.get(key)
        if texts[key] is not None and not isinstance(texts[key], str):
            raise FileProblem(f"{path}: {key} of {where}: takes text, not {texts[key]!r}.")
    if not (texts["image_dir"] or texts["metadata_file"]):
        raise FileProblem(f"{path}: {where} has no image_dir; name its folder of pictures.")
    is_reg = held.get("is_reg", False)
    if not isinstance(is_reg, bool):
        raise FileProblem(f"{path}: is_reg of {where}: takes true or false, not {is_reg!r}.")
    if texts["conditioning_data_dir"]:
        overrides["conditioning_data_dir"] = str(_there(path, texts["conditioning_data_dir"]))
    return Subset(
        _there(path, texts["image_dir"]),
        overrides.pop("num_repeats", None),
        texts["class_tokens"],
        is_reg,
        dataset,
        overrides,
        _there(path, texts["metadata_file"]),
    )


def _there(path: Path, named: str | None) -> Path | None:
    """A file or folder that is named, beside the file or where the program runs."""
    if not named:
        return None
    for place in (path.parent / named, Path(named)):
        if place.exists():
            return place
    raise FileProblem(f"{path}: names {named}, which is not there.")


def _check_twice(path: Path, subsets: list[Subset]) -> None:
    seen = set()
    for subset in subsets:
        place = (subset.metadata_file or subset.folder or path).resolve()
        if (subset.dataset, place) in seen:
            raise FileProblem(
                f"{path}: data set {subset.dataset + 1} names {place} twice; raise num_repeats"
                " instead."
            )
        seen.add((subset.dataset, place))
