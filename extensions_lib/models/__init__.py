"""Model families, layer names and the loaded model.

Importing this room needs no torch; `extensions_lib.models.loaded` does.
"""

from extensions_lib.models.families import (
    SD15,
    SD21,
    SDXL_BASE,
    SDXL_REFINER,
    Family,
    Structure,
    TextShape,
    UNetShape,
    VAEShape,
)
from extensions_lib.models.names import (
    LayerInfo,
    Place,
    canonical_layers,
    checkpoint_shapes,
    component_of,
    flat,
    flat_ldm,
    kohya_names,
    places,
)
from extensions_lib.models.structures import structure_of

__all__ = [
    "SD15",
    "SD21",
    "SDXL_BASE",
    "SDXL_REFINER",
    "Family",
    "LayerInfo",
    "Place",
    "Structure",
    "TextShape",
    "UNetShape",
    "VAEShape",
    "canonical_layers",
    "checkpoint_shapes",
    "component_of",
    "flat",
    "flat_ldm",
    "kohya_names",
    "places",
    "structure_of",
]
