"""Which folder holds a model that transformers reads: under models/, in the hub's cache, or got."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from extensions_lib.errors import FileProblem
from extensions_lib.tagging import hub, pretrained

# What beside the weights a model's folder needs, where the repository has it.
_SMALL = re.compile(r"[^/]+\.(json|txt|model|jinja)")
_NOT = re.compile(r"(model|training|trainer|all_results|train_results|eval_results).*\.json")
_PART = {
    name: re.compile(rf"{name.partition('.')[0]}(-\d+-of-\d+)?\.{name.partition('.')[2]}")
    for name in pretrained.WEIGHTS
}
_ASKING_SECONDS = 30.0


@dataclass(frozen=True)
class KnownModel:
    """A model to choose: its name here, its repository at the hub, its size.

    `folder` is where a local one lies; `repo` is empty for one that is only local.
    """

    name: str
    repo: str
    gigabytes: float
    folder: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What its folder may be called: its name, or its repository's."""
        return (self.name, self.repo.rpartition("/")[2]) if self.repo else (self.name,)


def local_folders(root: Path, known: Sequence[KnownModel]) -> list[KnownModel]:
    """The folders with a config.json below `root` that are not those of known models, by name."""
    taken = {name.casefold() for model in known for name in model.names}
    try:
        with os.scandir(root) as listing:
            names = sorted(item.name for item in listing if item.is_dir())
    except OSError:  # nobody has put one there
        return []
    found = []
    for name in names:
        folder = root / name
        hidden = name.startswith(".") or name.casefold() in taken
        if not hidden and (folder / pretrained.CONFIG).is_file():
            found.append(KnownModel(name, "", _gigabytes(folder), folder))
    return found


def _gigabytes(folder: Path) -> float:
    try:
        return sum(file.stat().st_size for file in pretrained.weight_files(folder)) / 1e9
    except (FileProblem, OSError):  # told when it is loaded
        return 0.0


def is_here(model: KnownModel, root: Path) -> bool:
    """Whether the model is on this machine; asks no network."""
    return _here(model, root) is not None


def find(
    name: str,
    root: Path,
    known: Sequence[KnownModel],
    *,
    download: bool = False,
    endpoint: str | None = None,
    on_progress: hub.OnProgress | None = None,
) -> Path:
    """The folder of the model of this name: below `root`, else the hub's cache, else downloaded.

    `endpoint` is a mirror of the hub. Raises FileProblem for a name there is none of, with the
    nearest; hub.NotHere for a model that is not here, with the folder and the files to put there;
    hub.DownloadProblem.
    """
    model = _named(name, root, known)
    found = _here(model, root)
    if found is not None:
        return found
    if not download:
        raise hub.NotHere(_where_to_put(model, root, endpoint))
    wanted = _to_fetch(model.repo, _listed(model.repo, endpoint))
    paths = hub.fetch(model.repo, wanted, endpoint=endpoint, on_progress=on_progress)
    return next(path.parent for path in paths if path.name == pretrained.CONFIG)


def _here(model: KnownModel, root: Path) -> Path | None:
    if model.folder is not None:
        return model.folder
    for name in model.names:
        if (root / name / pretrained.CONFIG).is_file():
            return root / name
    found = hub.cached(model.repo, (pretrained.CONFIG, "preprocessor_config.json"))
    return found[0].parent if found and _has_weights(found[0].parent) else None


def _has_weights(folder: Path) -> bool:
    try:
        pretrained.weight_files(folder)
    except FileProblem:  # a download that was not finished
        return False
    return True


def _named(name: str, root: Path, known: Sequence[KnownModel]) -> KnownModel:
    wanted = name.strip().casefold()
    there = [*known, *local_folders(root, known)]
    for model in there:
        if wanted in {each.casefold() for each in (*model.names, model.repo) if each}:
            return model
    names = [model.name for model in there]
    near = difflib.get_close_matches(name, names, 1)
    said = f"; did you mean {near[0]}?" if near else f". There are {', '.join(names)}."
    raise FileProblem(f"There is no model {name!r}{said} Others go into folders below {root}.")


def _where_to_put(model: KnownModel, root: Path, endpoint: str | None) -> str:
    page = f"{(endpoint or hub.HUB).rstrip('/')}/{model.repo}"
    return (
        f"{model.name} is not on this machine: allow its download (option download, about"
        f" {model.gigabytes:g} GB),"
        f" or put config.json, preprocessor_config.json, the tokenizer's files and"
        f" {' or '.join(pretrained.WEIGHTS)} from {page} into {root / model.name}."
    )


# --- what to download -------------------------------------------------------------------------


def _listed(repo: str, endpoint: str | None) -> list[str]:
    """The paths of a repository's files, by the hub. Raises DownloadProblem."""
    from huggingface_hub import HfApi, constants

    asked = endpoint or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise hub.DownloadProblem(
            f"{repo}: downloads are switched off by HF_HUB_OFFLINE; unset it, or put the files"
            " under models/."
        )
    try:
        told = HfApi(endpoint=endpoint).model_info(repo, timeout=_ASKING_SECONDS)
    except Exception as error:  # requests' and httpx's kinds besides huggingface_hub's own
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "GatedRepoError" in kinds:
            why = f"accept its author's terms on {asked}/{repo} and set HF_TOKEN"
        elif "RepositoryNotFoundError" in kinds:
            why = f"there is no such repository at {asked}, or it is private"
        else:
            said = str(error).strip().splitlines() or [type(error).__name__]
            why = f"{asked} cannot be asked ({said[0][:200]}); check the network or the mirror"
        raise hub.DownloadProblem(f"{repo}: {why}, or put the files under models/.") from error
    return [file.rfilename for file in told.siblings or []]


def _to_fetch(repo: str, paths: Iterable[str]) -> list[str]:
    """Of the repository's files those that the model needs: small ones, and one kind of weights."""
    listed = sorted(paths)
    small = [path for path in listed if _SMALL.fullmatch(path) and not _NOT.fullmatch(path)]
    for name, part in _PART.items():
        weights = [path for path in listed if part.fullmatch(path)]
        if name in weights:
            return [*small, name]
        if weights:
            return [*small, f"{name}.index.json", *weights]
    raise hub.DownloadProblem(f"{repo}: has no weights that can be read here.")
