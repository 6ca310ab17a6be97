"""What a checkpoint's metadata says of the pictures that suit it."""

from __future__ import annotations

import re

SIDES = {"SD1": 512, "SD2": 768, "SDXL": 1024}  # pixels, by family
SIZE_KEY = "crucible.size"  # "512" or "512x768", width first
CFG_KEY = "crucible.cfg"  # the CFG scale that suits it
CFG = 7.0  # where nothing is said
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SIZE = re.compile(r"\s*(\d+)(?:\s*[x×]\s*(\d+))?\s*")


def size_of(text: str) -> tuple[int, int] | None:
    """Width and height that the value of SIZE_KEY says; None where it says none."""
    stated = _SIZE.fullmatch(text)
    return (int(stated[1]), int(stated[2] or stated[1])) if stated else None


def cfg_of(text: str) -> float:
    """The CFG scale that the value of CFG_KEY says, or the usual one."""
    stated = _NUMBER.fullmatch(text)
    return float(stated[0]) if stated else CFG
