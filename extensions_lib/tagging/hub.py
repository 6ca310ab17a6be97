"""Where a model's files are: under models/, in the hub's cache, or, when asked for, on the hub."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError, FileProblem

if TYPE_CHECKING:
    from extensions_lib.tagging.manifest import Entry

ROOT = Path(__file__).resolve().parents[2]
HUB = "https://huggingface.co"
_ENDPOINT = re.compile(r"https?://[^\s/]+(/[^\s]*)?")


class NotHere(FileProblem):
    """A model whose files are not on this machine; says where to get and to put them."""


class DownloadProblem(CrucibleError):
    """A download that failed; what has arrived is kept."""


@dataclass(frozen=True)
class Progress:
    """How far the download of one of a model's files is, in bytes; `total` None: not told yet."""

    file: str
    done: int
    total: int | None
    number: int
    files: int


@dataclass(frozen=True)
class Files:
    """A tagger's files; `tags` is the model itself where it holds its tags. `place` is models,
    cache or downloaded."""

    model: Path
    tags: Path
    place: str


OnProgress = Callable[[Progress], None]


def locate(
    entry: Entry,
    models: Path,
    *,
    download: bool = False,
    endpoint: str | None = None,
    on_progress: OnProgress | None = None,
) -> Files:
    """The tagger's files. Raises NotHere, and DownloadProblem where they cannot be had."""
    if entry.folder is not None:
        model, tags = entry.folder / entry.files[0], entry.folder / entry.files[-1]
        return Files(model, tags, "models")
    wanted = [path for path in (entry.model, entry.tags) if path]
    place = "cache"
    found = cached(entry.repo, wanted) if entry.repo else None
    if found is None:
        if not download or not entry.repo:
            raise NotHere(_where_to_put(entry, models, endpoint))
        found, place = (
            fetch(entry.repo, wanted, endpoint=endpoint, on_progress=on_progress),
            "downloaded",
        )
    return Files(found[0], found[-1], place)


def is_here(entry: Entry) -> bool:
    """Whether the tagger's files are on this machine; asks no network."""
    if entry.folder is not None:
        return all((entry.folder / name).is_file() for name in entry.files)
    wanted = [path for path in (entry.model, entry.tags) if path]
    return bool(entry.repo) and cached(entry.repo, wanted) is not None


def _where_to_put(entry: Entry, models: Path, endpoint: str | None) -> str:
    names = " and ".join(entry.files)
    folder = models / (entry.folders[0] if entry.folders else entry.name)
    if not entry.repo:
        return f"{entry.title} is not on this machine: get {entry.url} and put it into {folder}."
    page = f"{(endpoint or HUB).rstrip('/')}/{entry.repo}"
    return (
        f"{entry.title} is not on this machine: allow its download, or put {names} from {page}"
        f" into {folder}."
    )


# --- the cache --------------------------------------------------------------------------------


def cached(repo: str, paths: Sequence[str], cache: Path | None = None) -> list[Path] | None:
    """The files of a repository in the hub's cache, all of one revision; None if any is missing.

    The revision is the one that `main` was last seen at, else any that has all files. Only looks
    at the disk, so that a hub that cannot be reached costs nothing.
    """
    folder = (cache or cache_folder()) / f"models--{repo.replace('/', '--')}"
    revisions = []
    with contextlib.suppress(OSError):
        revisions.append((folder / "refs" / "main").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        revisions += sorted(item.name for item in (folder / "snapshots").iterdir())
    for revision in revisions:
        found = [folder / "snapshots" / revision / path for path in paths]
        if revision and all(path.is_file() for path in found):
            return found
    return None


def cache_folder() -> Path:
    """The hub's cache, by the same variables as huggingface_hub."""
    home = os.environ.get("HF_HOME")
    if home is None:
        below = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        home = os.path.join(below, "huggingface")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(named or os.path.join(home, "hub"))))


# --- downloads --------------------------------------------------------------------------------


def fetch(
    repo: str,
    paths: Iterable[str],
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Downloads files of a repository into the hub's cache, by huggingface_hub.

    What has arrived of a file is kept: the next call goes on there, if the installed
    huggingface_hub can. Each file's checksum is compared. `on_progress` is called a few times a
    second; what it raises ends the download. Raises DownloadProblem.
    """
    wanted = list(paths)
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise DownloadProblem(
            f"The mirror {endpoint!r} is no address; write it as {HUB}, or leave it empty."
        )
    asked = {"repo": repo, "paths": wanted, "cache": str(cache) if cache else None}
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONUTF8": "1"}
    if endpoint is not None:
        environment["HF_ENDPOINT"] = endpoint.rstrip("/")
    # In a process of its own, since a download by huggingface_hub cannot be stopped, and takes its
    # address from the environment when it is imported.
    command = [sys.executable, "-m", "extensions_lib.tagging.fetch"]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows only
    )
    try:
        return _followed(child, asked, on_progress)
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            stream.close()


def _followed(
    child: subprocess.Popen[str], asked: dict[str, Any], on_progress: OnProgress | None
) -> list[Path]:
    """What the child found, told line by line."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    complaints: list[str] = []
    stderr = child.stderr
    # Read beside, so that a child with much to complain about does not wait for a reader.
    reader = threading.Thread(target=lambda: complaints.extend(stderr), daemon=True)
    reader.start()
    with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
        stdin.write(json.dumps(asked))
    for line in child.stdout:
        told = json.loads(line)
        if "problem" in told:
            raise DownloadProblem(told["problem"])
        if "found" in told:
            return [Path(path) for path in told["found"]]
        if on_progress is not None:
            on_progress(Progress(**told))
    child.wait()
    reader.join(5)
    last = next((line.strip() for line in reversed(complaints) if line.strip()), "no word")
    raise DownloadProblem(f"{asked['repo']}: the download ended with {child.returncode} ({last}).")
