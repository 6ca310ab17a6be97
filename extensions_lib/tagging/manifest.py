"""Which taggers there are and what each expects: read from `manifest.json`, and found on disk.

A folder under models/ with an ONNX and a tag list is a tagger; what it expects is taken from its
tag list's kind, or from a `crucible-tagger.json` of its own with the keys of the manifest.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem
from extensions_lib.tagging.labels import DANBOORU, find_list

MANIFEST = Path(__file__).with_name("manifest.json")
OWN = "crucible-tagger.json"
# Comes with the project; a WebUI's models/ is another folder than the project's.
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "demo-tagger"
# Where other tools keep taggers, each in a folder of its own, below models/.
SHELVES = ("", "tagger", "taggers", "TaggerOnnx", "deepdanbooru")
# The family that a tag list of this name speaks of, where nothing else does.
_FAMILY_OF_LIST = {
    "tags-selected.csv": "z3d",
    "tag_mapping.json": "cl",
    "-metadata.json": "camie",
    "top_tags.txt": "joytag",
    "classes.json": "ml-danbooru",
    "tags.txt": "deepdanbooru",
}
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "layout": ("NHWC", "NCHW", None),
    "colour": ("RGB", "BGR"),
    "range": (1, 255),
    "fit": ("pad", "shrink", "squash", "edge"),
    "interpolation": ("bicubic", "bilinear", "lanczos", "area"),
    "kind": ("onnx", "torch"),
    "logits": (True, False, None),
}


@dataclass(frozen=True)
class Contract:
    """How a picture becomes a model's input, and its output scores.

    `fit` makes a square of `size`: "pad" with `ground` around, then resize; "shrink" resize, then
    `ground` around; "edge" resize, then repeat the edges; "squash" both sides. A channel, in the
    order of `colour`, is (pixel / 255 · range − mean) / std. `layout` None is read off the file,
    `logits` None off its first scores. `output` is the name or number of the output, None the one
    that has as many scores as there are tags.
    """

    layout: str | None = "NHWC"
    colour: str = "BGR"
    range: float = 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fit: str = "pad"
    ground: tuple[int, ...] = (255, 255, 255)
    interpolation: str = "bicubic"
    size: int = 448
    logits: bool | None = False
    output: str | int | None = None


@dataclass(frozen=True)
class Entry:
    """A tagger: its names, its contract, its files.

    `model` and `tags` are paths in the hub's `repo`; in a local folder the file names count.
    `balanced` is the general threshold at which precision equals recall, as its author measured.
    `folder` is where the files were found, None for a model that is not under models/.
    """

    name: str
    title: str
    family: str
    contract: Contract
    model: str
    tags: str
    kind: str = "onnx"
    repo: str = ""
    url: str = ""
    aliases: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    categories: Mapping[str, str] = field(default_factory=lambda: DANBOORU)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    balanced: float | None = None
    folder: Path | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files' names in a local folder."""
        return tuple(os.path.basename(path) for path in (self.model, self.tags) if path)


_CONTRACT = {each.name for each in fields(Contract)}
_KEYS = {each.name for each in fields(Entry)} - {"contract", "folder"} | _CONTRACT


# --- reading ----------------------------------------------------------------------------------


@cache
def known() -> tuple[Entry, ...]:
    """The taggers of the manifest."""
    data = _read(MANIFEST)
    return tuple(_entry(_resolved(one, MANIFEST), MANIFEST) for one in data["taggers"])


@cache
def _families() -> Mapping[str, Mapping[str, Any]]:
    families: dict[str, Mapping[str, Any]] = _read(MANIFEST)["families"]
    return families


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FileProblem(f"{path}: is not JSON ({error}); mend or remove it.") from error
    if not isinstance(data, dict):
        raise FileProblem(f"{path}: holds no JSON object; mend or remove it.")
    return data


def _resolved(told: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The keys with those of the family, and of the one that the family is like, below them."""
    families, values = _families(), dict(told)
    name: str | None = values.setdefault("family", "wd")
    while name is not None:
        if name not in families:
            listed = ", ".join(families)
            raise FileProblem(f"{where}: family {name!r} is none; there are {listed}.")
        values = {**families[name], **values}
        name = families[name].get("like")
    values.pop("like", None)
    values.pop("about", None)
    return values


def _entry(values: Mapping[str, Any], where: Path) -> Entry:
    for key, value in values.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise FileProblem(
                f"{where}: there is no key {key!r}" + (f"; is it {near[0]}?" if near else ".")
            )
        if key in _CHOICES and value not in _CHOICES[key]:
            takes = ", ".join(json.dumps(one) for one in _CHOICES[key])
            raise FileProblem(f"{where}: {key} takes one of {takes}, not {json.dumps(value)}.")
        if (wrong := _wrong(key, value)) is not None:
            raise FileProblem(f"{where}: {key} takes {wrong}, not {json.dumps(value)}.")
    own = {key: value for key, value in values.items() if key not in _CONTRACT}
    return Entry(contract=_contract(values), **_tuples(own))


def _contract(values: Mapping[str, Any]) -> Contract:
    return Contract(**_tuples({key: values[key] for key in _CONTRACT & values.keys()}))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _wrong(key: str, value: Any) -> str | None:
    """What the key takes, if this is not it."""
    if key in ("mean", "std", "ground"):
        fits = isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
        return None if fits and (key != "std" or all(value)) else "three numbers"
    if key in ("aliases", "folders"):
        fits = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return None if fits else "a list of names"
    if key == "size":
        return None if type(value) is int and 8 <= value <= 4096 else "pixels from 8 to 4096"
    if key in ("thresholds", "categories"):
        fits = isinstance(value, dict) and all(
            _is_number(one) if key == "thresholds" else isinstance(one, str)
            for one in value.values()
        )
        return None if fits else "an object of " + key
    if key in ("name", "title", "family", "repo", "url", "model", "tags"):
        return None if isinstance(value, str) else "text"
    if key == "balanced":
        return None if value is None or _is_number(value) else "a number"
    if key == "output":
        fits = value is None or isinstance(value, str) or type(value) is int
        return None if fits else "a name, a number or null"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def contract_of(family: str) -> Contract:
    """The contract of a family of the manifest, such as "timm"."""
    return _contract(_resolved({"family": family}, MANIFEST))


# --- finding ----------------------------------------------------------------------------------


def entries(models: Path, problems: list[str] | None = None) -> list[Entry]:
    """The taggers under models/ first, by name, then the demo, then the manifest's others.

    A folder whose `crucible-tagger.json` cannot be used is said in `problems`.
    """
    found: dict[str, Entry] = {}
    for folder in _folders(models):
        try:
            entry = _local(folder)
        except FileProblem as problem:
            if problems is not None:
                problems.append(str(problem))
            continue
        if entry is not None:
            found.setdefault(entry.name, entry)
    here = sorted(found.values(), key=lambda entry: entry.name.casefold())
    shipped = [_local(SHIPPED)] if SHIPPED.name not in found else []
    others = [entry for entry in (*shipped, *known()) if entry and entry.name not in found]
    return here + others


def find_entry(name: str, models: Path) -> Entry:
    """The tagger of this name, alias, repository or folder.

    Raises FileProblem, which lists what there is.
    """
    problems: list[str] = []
    there = entries(models, problems)
    wanted = name.strip().casefold()
    for entry in there:
        if wanted in _names(entry):
            return entry
    direct = Path(name)
    if direct.is_dir() and (own := _local(direct)) is not None:
        return own
    listed = ", ".join(entry.name for entry in there)
    said = "".join(f" {problem}" for problem in problems)
    raise FileProblem(f"There is no tagger {name!r}. There are {listed}.{said}")


def _names(entry: Entry) -> set[str]:
    base = entry.repo.rpartition("/")[2] if "/" not in entry.model else ""
    repos = (base, entry.repo, entry.repo.replace("/", "_")) if base else ()  # sd-scripts' folders
    return {name.casefold() for name in (entry.name, entry.title, *entry.aliases, *repos) if name}


def _folders(models: Path) -> Iterator[Path]:
    """Every folder that may hold a tagger: those of the shelves."""
    for shelf in SHELVES:
        try:
            with os.scandir(models / shelf) as listing:
                names = sorted(item.name for item in listing if item.is_dir())
        except OSError:  # most shelves are on few machines
            continue
        yield from (models / shelf / name for name in names if not name.startswith("."))


def _local(folder: Path) -> Entry | None:
    """The tagger in a folder, if there is one."""
    try:
        names = sorted(item.name for item in folder.iterdir() if item.is_file())
    except OSError:
        return None
    if OWN in names:
        told = {"name": folder.name, "title": folder.name, **_read(folder / OWN)}
        return replace(_entry(_resolved(told, folder / OWN), folder / OWN), folder=folder)
    for entry in known():
        here = folder.name.casefold() in _names(entry) or folder.name in entry.folders
        if here and set(entry.files) <= set(names):
            return replace(entry, folder=folder)
    models = [name for name in names if name.endswith(".onnx")]
    listed = find_list(folder)
    if not models or listed is None:
        return None
    model = "model.onnx" if "model.onnx" in models else models[0]
    return replace(_guessed(folder, model, listed.name), folder=folder)


def _guessed(folder: Path, model: str, tags: str) -> Entry:
    """What the kind of the tag list says; layout and logits are read off the model."""
    families = [
        family
        for name, family in _FAMILY_OF_LIST.items()
        if tags == name or (name.startswith("-") and tags.endswith(name))
    ]
    told = {
        "name": folder.name,
        "title": folder.name,
        "model": model,
        "tags": tags,
        "family": families[0] if families else "wd",
        "logits": None,
    }
    if not families:
        told["layout"] = None
    return _entry(_resolved(told, folder), folder)
