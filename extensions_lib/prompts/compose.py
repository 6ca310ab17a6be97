"""Composition: a prompt in parts joined by AND, each with its own weight.

`a cat :1.2 AND a dog` is two parts that are sampled apart and added. The rules are those of
AUTOMATIC1111 WebUI 1.10.1; only positive prompts are split there.
"""

from __future__ import annotations

import re

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*")


def split_and(prompt: str) -> list[tuple[str, float]]:
    """The parts with their weights (1.0 when none is written); spaces after a part are dropped.

    A weight is a number after the part's last colon; anything else there is text.
    """
    parts = []
    for part in _AND.split(prompt):
        text, colon, number = part.rpartition(":")
        match = _WEIGHT.fullmatch(number) if colon else None
        parts.append(
            (text.rstrip(), float(match.group(1))) if match is not None else (part.rstrip(), 1.0)
        )
    return parts
