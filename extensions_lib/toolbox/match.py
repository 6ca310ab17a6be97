"""Which layers of a network change one of a checkpoint, by names and shapes alone; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from extensions_lib.files.foreign import unsupported
from extensions_lib.files.keys import group
from extensions_lib.files.recognise import (
    fits,
    kind_of,
    layers_of,
    missing_part,
    standard_shapes,
)
from extensions_lib.files.sizes import Shapes
from extensions_lib.models.families import Structure


@dataclass(frozen=True)
class Match:
    """How many layers of a network change one of a checkpoint, and which of them do not."""

    fitting: int
    strange: list[str]


def match(shapes: Shapes, structure: Structure) -> Match:
    """Holds the layers of a network against those of a checkpoint, by names and shapes alone.

    What is wrong with the file itself is not told again: see NetworkFacts.
    """
    weights = layers_of(structure)
    fitting, strange = 0, []
    for layer, found in group(shapes, structure).layers.items():
        parts = standard_shapes(found)
        if unsupported(parts) or missing_part(parts) or kind_of(parts) is None:
            continue
        if layer not in weights:
            strange.append(f"{layer}: the checkpoint has no such layer")
        elif fits(parts, weights[layer].shape) is False:
            strange.append(f"{layer}: made for a layer of another size")
        else:
            fitting += 1
    return Match(fitting, strange)
