"""The pictures of a training set, each looked at once: what is broken is known before the start."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from extensions_lib.datasets import captions
from extensions_lib.datasets.at_once import Note, Progress, at_once
from extensions_lib.datasets.buckets import Size
from extensions_lib.datasets.folders import Subset
from extensions_lib.datasets.options import DataOptions
from extensions_lib.datasets.pictures import PictureProblem, find, is_picture, open_picture
from extensions_lib.datasets.placing import Placed, place
from extensions_lib.errors import CrucibleError, FileProblem, Stopped

_FACT = "training picture"


class Facts(Protocol):
    """What was learnt about files, kept as long as they do not change (files.cache.FileCache)."""

    def get(self, kind: str, path: Path) -> Any | None: ...
    def put(self, kind: str, path: Path, value: Any, known: tuple[int, int]) -> None: ...


@dataclass(frozen=True)
class Picture:
    """A picture to train on. `content` is the hash of its file, `caption` the text as written.

    `caption_file` is where that stands; None: there is none. `options` are those of its subset.
    `guide` is the picture of the same name in conditioning_data_dir, `guide_content` its hash.
    """

    path: Path
    subset: Subset
    options: DataOptions
    caption: str | None = None
    caption_file: Path | None = None
    guide: Path | None = None
    size: Size = (0, 0)
    content: str = ""
    guide_content: str = ""
    placed: Placed | None = None

    @property
    def name(self) -> str:
        """What to call it: the folder and the file."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def where(self) -> Placed:
        """Its place in its bucket."""
        assert self.placed is not None
        return self.placed


@dataclass(frozen=True)
class Found:
    """The pictures of the subsets, in order, and those that cannot be trained on with reasons."""

    pictures: tuple[Picture, ...]
    broken: tuple[Note, ...]


def find_pictures(
    subsets: Sequence[Subset],
    options: DataOptions,
    *,
    facts: Facts | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Found:
    """Finds the pictures of the subsets with their captions, and decodes each to see that it can.

    With `facts`, a file that was seen to be sound is not decoded again while it stays the same.
    Raises CrucibleError for a folder that cannot be read, Stopped.
    """
    listed: list[Picture] = []
    broken: list[Note] = []
    for subset in subsets:
        settings = subset.settings(options)
        for path, given in _listed(subset, settings):
            try:
                listed.append(_with_texts(path, given, subset, settings))
            except CrucibleError as problem:
                broken.append(Note(str(path), str(problem)))
    found = []
    for picture, seen in at_once(
        lambda each: _seen(each, facts), listed, threads, on_progress, stop
    ):
        if isinstance(seen, CrucibleError):
            broken.append(Note(str(picture.path), str(seen)))
        else:
            found.append(seen)
    if stop is not None and stop.is_set():
        raise Stopped("Stopped while looking at the pictures.")
    return Found(tuple(found), tuple(broken))


# --- one picture ------------------------------------------------------------------------------


def _seen(picture: Picture, facts: Facts | None) -> Picture:
    """With size, content and place. Raises CrucibleError for what cannot be trained on."""
    path = picture.path
    try:
        status = os.stat(path)
        known = facts.get(_FACT, path) if facts else None
    except OSError as error:
        raise PictureProblem(f"{path}: cannot be read ({error.strerror}).") from error
    if not (isinstance(known, list) and len(known) == 3):
        known = [*open_picture(path).size, _hash(path)]
        if facts:
            facts.put(_FACT, path, known, (status.st_size, status.st_mtime_ns))
    size = int(known[0]), int(known[1])
    try:
        placed = place(size, picture.options)
    except CrucibleError as problem:
        raise PictureProblem(f"{path}: {problem}") from None
    guide = "" if picture.guide is None else _hash(picture.guide)
    return replace(picture, size=size, content=str(known[2]), guide_content=guide, placed=placed)


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise PictureProblem(f"{path}: cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def _with_texts(path: Path, given: str | None, subset: Subset, options: DataOptions) -> Picture:
    """With its caption, `given` or from beside it, and its guide."""
    text, file = given, subset.metadata_file if given is not None else None
    if subset.metadata_file is None:
        file = _caption_file(path, options)
        read = captions.read(file)
        text, file = (read.text, file) if read else (None, None)
    return Picture(path, subset, options, text, file, _guide(path, options))


def _caption_file(path: Path, options: DataOptions) -> Path:
    suffix = options.caption_extension
    suffix = suffix if suffix.startswith(".") else f".{suffix}"
    found = captions.caption_path(path, suffix)
    parts = path.stem.rsplit("_", 4)  # name_x_y_width_height of a face
    is_face = len(parts) == 5 and all(part.isdecimal() for part in parts[1:])
    if is_face and not os.path.exists(found):
        return captions.caption_path(path.with_name(parts[0] + path.suffix), suffix)
    return found


def _guide(path: Path, options: DataOptions) -> Path | None:
    if not options.conditioning_data_dir:
        return None
    folder = Path(options.conditioning_data_dir)
    same = folder / path.name
    if same.is_file():
        return same
    others = sorted(each for each in folder.glob(f"{_plain(path.stem)}.*") if is_picture(each))
    if others:
        return others[0]
    raise PictureProblem(f"{path}: has no picture of its name in {folder}; add one.")


def _plain(name: str) -> str:
    """The name with nothing in it that glob takes for a sign."""
    import glob

    return glob.escape(name)


# --- lists ------------------------------------------------------------------------------------


def _listed(subset: Subset, options: DataOptions) -> list[tuple[Path, str | None]]:
    """The pictures of a subset, with the captions that a metadata file gives them."""
    if subset.metadata_file is None:
        assert subset.folder is not None
        return [(path, None) for path in find(subset.folder)]
    entries = _metadata(subset.metadata_file)
    found: list[tuple[Path, str | None]] = []
    for key, about in entries.items():
        where = f"{subset.metadata_file}: {key}"
        found.append((_located(key, subset), _caption_of(about, options, where)))
    return found


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    """sd-scripts' fine-tuning data: {picture: {"caption", "tags"}}, or a line each (.jsonl)."""
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            held = {str(line["image_path"]): line for line in lines}
        else:
            held = json.loads(text)
        if not all(isinstance(about, dict) for about in held.values()):
            raise TypeError
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FileProblem(
            f"{path}: is no metadata file: an object of pictures, each with caption and tags."
        ) from None
    return held


def _located(key: str, subset: Subset) -> Path:
    """The picture that a metadata file names, with or without its suffix."""
    if subset.folder is None and not os.path.isabs(key):
        raise FileProblem(f"{subset.metadata_file}: names {key}; give image_dir, its folder.")
    path = (subset.folder or Path()) / key
    if path.is_file() or is_picture(path):
        return path
    found = sorted(each for each in path.parent.glob(f"{_plain(path.name)}.*") if is_picture(each))
    return found[0] if found else path


def _caption_of(about: dict[str, Any], options: DataOptions, where: str) -> str:
    """Caption and tags as one text; the tags after each line of the caption, with wildcards.

    Either may be a list, as dataset-tag-editor writes tags. Raises FileProblem for anything else.
    """
    separator = options.caption_separator
    caption, tags = (
        _told(about.get(key), separator, f"{where}: {key}") for key in ("caption", "tags")
    )
    lines = [line for line in caption.splitlines() if line.strip()] or [""]
    lines = lines if options.enable_wildcard else lines[:1]
    tags = tags.replace("\n", separator)
    return "\n".join(separator.join(filter(None, (line, tags))) for line in lines)


def _told(value: Any, separator: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return separator.join(value)
    if not isinstance(value, str):
        raise FileProblem(f"{where}: takes text or a list of tags, not {value!r:.60}.")
    return value
