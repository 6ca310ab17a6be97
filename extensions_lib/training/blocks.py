"""Values for each block of the UNet, in the order of sd-scripts.

SD1 and SD2 have 25: IN00 to IN11, the middle, OUT00 to OUT11. SDXL has 23: the time embedding,
IN00 to IN08, the three parts of the middle, OUT00 to OUT08, the output; or 19, as SD1 counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from extensions_lib.errors import CrucibleError
from extensions_lib.models.families import Structure
from extensions_lib.models.names import unet_blocks

T = TypeVar("T")
_MIDDLE = ("mid_block.resnets.0.", "mid_block.attentions.0.", "mid_block.resnets.1.")


def by_block(structure: Structure, values: Sequence[T], name: str) -> Callable[[str], T | None]:
    """What a layer of the UNet has of the values; None for layers in none of these blocks.

    `name` is the option's. Raises CrucibleError where there are not as many as blocks.
    """
    blocks = unet_blocks(structure)
    sides = [sorted({b for b in blocks.values() if b.startswith(s)}) for s in ("IN", "OUT")]
    plain = [*sides[0], "M00", *sides[1]]
    parted = ["time", *sides[0], "M0", "M1", "M2", *sides[1], "out"]
    counts = {len(plain): plain, len(parted): parted}
    if len(values) not in counts:
        said = " or ".join(str(count) for count in sorted(counts))
        raise CrucibleError(f"{name}: has {len(values)} values; this model takes {said}.")
    named = dict(zip(counts[len(values)], values, strict=True))

    def of(layer: str) -> T | None:
        block = blocks.get(layer)
        if block is None:
            outside = "time" if "_embedding" in layer else "out"
            return named.get(outside)
        if block == "M00" and block not in named:
            within = layer.removeprefix("unet.")
            block = next(f"M{n}" for n, part in enumerate(_MIDDLE) if within.startswith(part))
        return named[block]

    return of
