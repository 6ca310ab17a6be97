"""Captions: text files beside pictures, read and changed without losing how they were written.

A caption is a list of tags, or sentences; commas part it either way. A file of several lines holds
several captions for one picture (kohya's trainer picks one of them), so each line is changed on its
own. UTF-8 with or without a byte order mark and both kinds of line end stay as they are; a file in
any other encoding is named and left alone.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from extensions_lib.atomic import reason
from extensions_lib.errors import FileProblem

SUFFIXES = (".txt", ".caption")  # the first unless asked otherwise; kohya's trainer has both
# What may become of a caption that is there already.
EXISTING = ("ask", "keep", "overwrite", "append", "prepend", "copy")
MOST_BYTES = 1 << 20  # of a caption; what is larger is some other text

# Signs that no file's name has on every system.
UNFIT = re.compile(r'[/\\:*?"<>|\x00-\x1f]')
_BOM = b"\xef\xbb\xbf"
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_WEIGHTED = re.compile(r"\((.+):\s*-?[0-9.]+\)")
_ESCAPED = re.compile(r"\\([\\()\[\]])")
_PLACEHOLDER = re.compile(r"\[([a-z_]+)(?::([^\]]*))?\]")


class CaptionProblem(FileProblem):
    """A caption that cannot be read, written or understood."""


# --- files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caption:
    """A caption's text with its own line ends, and whether the file begins with a mark."""

    text: str
    bom: bool = False

    @property
    def encoded(self) -> bytes:
        """The bytes of the file."""
        return _BOM * self.bom + self.text.encode("utf-8")

    def rewritten(self, text: str) -> Caption:
        """With another text, in this file's kind of line end."""
        if plain_lines(text) == plain_lines(self.text):
            return self
        if "\r\n" in self.text:
            text = plain_lines(text).replace("\n", "\r\n")
        return replace(self, text=text)


def plain_lines(text: str) -> str:
    """The text with "\\n" for every line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decoded(raw: bytes, path: str | os.PathLike[str]) -> Caption:
    """The caption that these bytes of a file are. Raises CaptionProblem, naming `path`."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CaptionProblem(f"{path}: is UTF-16; save it as UTF-8. It is left alone.")
    if b"\0" in raw:
        raise CaptionProblem(f"{path}: holds zero bytes, so it is no text. It is left alone.")
    bom = raw.startswith(_BOM)
    try:
        return Caption(raw[3 * bom :].decode("utf-8"), bom)
    except UnicodeDecodeError as error:
        raise CaptionProblem(
            f"{path}: is not UTF-8 (byte {error.start + 3 * bom}); save it as UTF-8."
            " It is left alone."
        ) from None


def read_bytes(path: str | os.PathLike[str]) -> bytes | None:
    """What the file holds, None where there is none. Raises CaptionProblem."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # so no file can have it
            return None
        raise CaptionProblem(f"{path}: cannot be read ({reason(error)}).") from error
    if len(raw) > MOST_BYTES:
        raise CaptionProblem(f"{path}: has over {MOST_BYTES >> 20} MB, so it is no caption.")
    return raw


def read(path: str | os.PathLike[str]) -> Caption | None:
    """The caption in a file, None where there is none. Raises CaptionProblem."""
    raw = read_bytes(path)
    return None if raw is None else decoded(raw, path)


def caption_path(picture: Path, suffix: str = SUFFIXES[0]) -> Path:
    """Where the picture's caption is: with `suffix`, else with the other one, else to be made."""
    preferred = picture.with_suffix(suffix)
    # os.path.exists: a name may be too long for one suffix and not for the other
    if not os.path.exists(preferred):
        for other in SUFFIXES:
            if other != suffix and os.path.exists(picture.with_suffix(other)):
                return picture.with_suffix(other)
    return preferred


def output_path(template: str, picture: Path, output_extension: str = "txt") -> Path:
    """The caption's path by a template of its name, in the picture's folder.

    `[name]` is the picture's name without suffix, `[extension]` its suffix, `[hash:sha256]` (or
    another of hashlib's) the hash of the file, `[output_extension]` the caption's suffix.
    Raises CaptionProblem for another placeholder, or a name that leads to another folder or to
    the picture itself.
    """

    def filled(match: re.Match[str]) -> str:
        what, argument = match.groups()
        if what == "hash" and argument in hashlib.algorithms_guaranteed - {
            "shake_128",
            "shake_256",
        }:
            return _hash(picture, argument)
        simple = {
            "name": picture.stem,
            "extension": picture.suffix[1:],
            "output_extension": output_extension.lstrip("."),
        }
        if argument is not None or what not in simple:
            raise CaptionProblem(
                f"{template}: {match[0]} is none of [name], [extension], [hash:sha256] and"
                " [output_extension]."
            )
        return simple[what]

    name = _PLACEHOLDER.sub(filled, template)
    if not name.strip(". ") or UNFIT.search(_PLACEHOLDER.sub("", template)):
        raise CaptionProblem(
            f"{template}: makes no file name; begin with [name].[output_extension]."
        )
    if name == picture.name:
        raise CaptionProblem(f"{template}: would write over {picture.name}; change the template.")
    return picture.with_name(name)


def _hash(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CaptionProblem(f"{path}: cannot be read ({reason(error)}).") from error
    return digest.hexdigest()


def copy_path(path: Path) -> Path:
    """A free name for a copy of the caption: `a.txt.bak`, `a.txt.bak2`, …"""
    number, free = 1, path.with_name(f"{path.name}.bak")
    while os.path.exists(free):
        number += 1
        free = path.with_name(f"{path.name}.bak{number}")
    return free


# --- tags -------------------------------------------------------------------------------------


def split(text: str) -> list[str]:
    """The tags of a caption, of all its lines, in order, without the space around them."""
    return [tag for part in re.split("[,\r\n]", text) if (tag := part.strip())]


def join(tags: Iterable[str]) -> str:
    """Tags as one line."""
    return ", ".join(tags)


@functools.lru_cache(maxsize=1 << 16)
def fold(tag: str) -> str:
    """A tag as matching sees it: `Facial_Hair`, `(facial hair:1.2)` and `facial hair` are one.

    Case, underscores, escapes of brackets and a weight make no difference.
    """
    tag = tag.strip()
    if weighted := _WEIGHTED.fullmatch(tag):
        tag = weighted[1]
    tag = _ESCAPED.sub(r"\1", tag).replace("_", " ")
    return " ".join(tag.casefold().split())


def unique(tags: Iterable[str], also: Collection[str] = ()) -> list[str]:
    """Tags without those that come again, or that are among `also`."""
    seen = {fold(tag) for tag in also}
    kept = []
    for tag in tags:
        if (key := fold(tag)) not in seen:
            seen.add(key)
            kept.append(tag)
    return kept


def retag(text: str, change: Callable[[list[str]], Sequence[str]]) -> str:
    """The caption with the tags of each line changed; a line whose tags stay is not touched.

    A caption without any text has one empty line. Empty lines between others are left.
    """
    if not text.strip():
        made = join(change([]))
        return made + text if made else text
    return "".join(
        _retagged(line, change) if line.strip() else line for line in _LINES.findall(text)
    )


def _retagged(line: str, change: Callable[[list[str]], Sequence[str]]) -> str:
    body = line.rstrip("\r\n")
    before = split(body)
    after = list(change(list(before)))
    if after == before:
        return line
    # "a,b" without a space is kept so; what people write is ", "
    separator = "," if "," in body and not re.search(r",\s", body) else ", "
    return separator.join(after) + line[len(body) :]


def combined(old: str | None, new: str, existing: str) -> str | None:
    """What a caption becomes when `new` is written for a picture that may have one.

    None: nothing is to be written. A caption that holds only space counts as none. Tags that are
    there already are not written twice. "copy" is "overwrite" here: the copy is the caller's.
    Raises CaptionProblem for "ask", which somebody must have answered.
    """
    if existing not in EXISTING:
        raise CaptionProblem(f"existing captions: {existing!r} is none of {', '.join(EXISTING)}.")
    if old is None or not old.strip() or existing in ("overwrite", "copy"):
        return new
    if existing == "keep":
        return None
    if existing == "ask":
        raise CaptionProblem(
            "There is a caption already: choose to keep, overwrite, append, prepend or copy it."
        )
    added = split(new)
    if existing == "append":
        return retag(old, lambda tags: tags + unique(added, also=tags))
    folded = {fold(tag) for tag in added}
    return retag(old, lambda tags: unique(added) + [t for t in tags if fold(t) not in folded])
