"""Prompts of samples as sd-scripts writes them: `a cat --n dog --w 512 --h 768 --d 1 --l 7`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from extensions_lib.errors import CrucibleError
from extensions_lib.models.place import Sample

_FLAG = re.compile(r"\s--([a-z]+)\s+")
_FIELDS: dict[str, tuple[str, type]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "l": ("cfg", float),
    "s": ("steps", int),
    "cn": ("control", Path),
}


def read_sample(line: str, usual: Sample) -> Sample:
    """The sample of one line; what it does not say is as in `usual`. `--cn` names a picture.

    Raises CrucibleError, naming the flag, for one that is unknown or has no such value.
    """
    prompt, *rest = _FLAG.split(" " + line.strip())
    told: dict[str, Any] = {"prompt": prompt.strip()}
    for flag, text in zip(rest[::2], rest[1::2], strict=True):
        if flag not in _FIELDS:
            known = ", ".join(f"--{each}" for each in _FIELDS)
            raise CrucibleError(f"sample prompt: --{flag} is unknown; there are {known}.")
        name, kind = _FIELDS[flag]
        try:
            told[name] = kind(text.strip())
        except ValueError:
            raise CrucibleError(f"sample prompt: --{flag} takes a number, not {text!r}.") from None
    for side in ("width", "height"):
        if told.get(side) is not None and told[side] % 8:
            raise CrucibleError(f"sample prompt: {side} {told[side]} is no multiple of 8.")
    return replace(usual, **told)


def read_samples(lines: Sequence[str], usual: Sample) -> list[Sample]:
    """One for each line that is neither empty nor a comment; seeds that are not said count up."""
    found: list[Sample] = []
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            found.append(read_sample(line, replace(usual, seed=usual.seed + len(found))))
    return found
