"""Block weights: how strong a network is in each block of the UNet, and in the text encoder.

Written `lbw=` as the extension sd-webui-lora-block-weight does: the name of a preset, or numbers
for the blocks in the order of one of its lists (the first, BASE, is the text encoder's); or
`in= mid= out=` as SD.Next does, each one number or one for each block of that side.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extensions_lib.prompts.elements import Element

BASE = "BASE"
MIDDLE = "M00"


def _named(side: str, numbers: Sequence[int]) -> list[str]:
    return [f"{side}{number:02d}" for number in numbers]


# How many numbers are written -> the blocks that they are for, after the original (ldm) numbering.
LISTS: Mapping[int, tuple[str, ...]] = {
    # SDXL: LoRA (blocks with attention), LyCORIS (all blocks)
    12: (BASE, *_named("IN", (4, 5, 7, 8)), MIDDLE, *_named("OUT", range(6))),
    20: (BASE, *_named("IN", range(9)), MIDDLE, *_named("OUT", range(9))),
    # SD1 and SD2: the same
    17: (BASE, *_named("IN", (1, 2, 4, 5, 7, 8)), MIDDLE, *_named("OUT", range(3, 12))),
    26: (BASE, *_named("IN", range(12)), MIDDLE, *_named("OUT", range(12))),
}
_SEVENTEEN = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": "0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5",
}
PRESETS: Mapping[str, str] = _SEVENTEEN
_FLUX = 61  # values that the extension has for Flux, whose blocks are others
_VALUE = re.compile(r"X(?:([+-])(\d*\.?\d+))?")
_LETTERS = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}  # drawn evenly from this range
_SDXL_OUT, _SD1_OUT = 9, 12  # blocks on a side


class BlockMistake(ValueError):
    """Block weights that cannot be read; the text says why."""


@dataclass(frozen=True)
class Blocks:
    """Weights by block: BASE, IN00 …, M00, OUT00 …; a block that is not named has 1.

    `elements` (prompts.elements) take the place of these weights where they cover a layer.
    """

    weights: tuple[tuple[str, float], ...] = ()
    elements: tuple[Element, ...] = ()

    def of(self, block: str, names: Iterable[str] = ()) -> float:
        """The weight of one block, in it of a layer that goes by these names; "" for no block."""
        for element in reversed(self.elements):
            if element.covers(block, names):
                return element.weight
        return dict(self.weights).get(block, 1.0)

    @property
    def key(self) -> tuple[tuple[str, float], ...]:
        """What it says, to be compared and put in order."""
        return (*self.weights, *((element.text, element.weight) for element in self.elements))


def read_blocks(
    text: str,
    *,
    x: float | None = None,
    presets: Mapping[str, str] = PRESETS,
    seed: str = "",
) -> Blocks:
    """What follows `lbw=`: a preset's name or 12, 17, 20 or 26 values.

    A value is a number, X (what `x=` says) or X+0.2, R (a random number from 0 to 1) or U (from
    −0.5 to 1.5). Random ones are drawn from `seed`, the tag's own text, so that a picture can be
    made again. Blocks that the list leaves out have the weight of a neighbour.

    Raises BlockMistake.
    """
    by_name = {name.upper(): numbers for name, numbers in presets.items()}
    written = by_name.get(text.strip().upper(), text)
    values = [part.strip() for part in written.split(",")]
    names = LISTS.get(len(values))
    if names is None:
        if len(values) == 1:
            raise BlockMistake(f"there is no preset {text!r}; there are {', '.join(presets)}")
        sizes = ", ".join(map(str, sorted(LISTS)))
        flux = " for Flux" if len(values) == _FLUX else ""
        raise BlockMistake(f"{len(values)} block weights{flux} are given; expected {sizes} of them")
    drawn = random.Random(seed)
    weights = [_value(value, x, drawn) for value in values]
    return Blocks(tuple(_filled(dict(zip(names, weights, strict=True))).items()))


def _filled(weights: dict[str, float]) -> dict[str, float]:
    """With the blocks that a list leaves out: each has the weight of its neighbour on that side.

    The lists for LoRA name the blocks with attention alone; a LoCon has the others too, and ALL
    must be all of it.
    """
    filled = {BASE: weights[BASE]}
    for side in ("IN", "OUT"):
        names = _named(side, range(_SD1_OUT))
        listed = [name for name in names if name in weights]
        for name in names:
            before = [other for other in listed if other <= name]
            filled[name] = weights[before[-1] if before else listed[0]]
    filled[MIDDLE] = weights[MIDDLE]
    return filled


def read_sides(sides: Mapping[str, str]) -> Blocks:
    """`in=`, `mid=`, `out=`: one number for a side, or one for each block. Raises BlockMistake."""
    weights: dict[str, float] = {}
    for side, text in sides.items():
        values = [_value(part.strip(), None, random.Random(side)) for part in text.split(",")]
        if side == "mid":
            if len(values) > 1:
                raise BlockMistake("mid has one block")
            weights[MIDDLE] = values[0]
        elif len(values) == 1:
            weights |= dict.fromkeys(_named(side.upper(), range(_SD1_OUT)), values[0])
        elif len(values) in (_SDXL_OUT, _SD1_OUT):
            names = _named(side.upper(), range(len(values)))
            weights |= dict(zip(names, values, strict=True))
        else:
            raise BlockMistake(
                f"{side} has {len(values)} weights; expected 1, {_SDXL_OUT} (SDXL) or {_SD1_OUT}"
            )
    return Blocks(tuple(sorted(weights.items())))


def _value(text: str, x: float | None, drawn: random.Random) -> float:
    if text.upper() in _LETTERS:
        return round(drawn.uniform(*_LETTERS[text.upper()]), 3)
    if match := _VALUE.fullmatch(text.upper()):
        if x is None:
            raise BlockMistake(f"{text!r} needs a value: write for example x=0.5")
        more = float(match[2]) if match[2] else 0.0
        return x - more if match[1] == "-" else x + more
    try:
        value = float(text)
    except ValueError:
        raise BlockMistake(f"block weight {text!r} is not a number") from None
    if not math.isfinite(value):
        raise BlockMistake(f"block weight {text!r} is not a finite number")
    return value
