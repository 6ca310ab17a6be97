"""Where to begin: named values of options, by family of the base; data in presets.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from extensions_lib.datasets.dataset_file import read_toml
from extensions_lib.errors import CrucibleError
from extensions_lib.models.families import SD15, Family, Structure
from extensions_lib.options import checked
from extensions_lib.training.options import TrainingOptions

FILE = Path(__file__).with_name("presets.toml")
DEMO = "Demo"  # the family of the demo checkpoint's own presets


@dataclass(frozen=True)
class Preset:
    """Values to begin with. `families`: SD1, SD2, SDXL, or Demo for the demo checkpoint."""

    name: str
    families: tuple[str, ...]
    options: Mapping[str, Any]


@cache
def presets() -> tuple[Preset, ...]:
    """All of them, checked. Raises CrucibleError, naming the preset, for a wrong value."""
    found = []
    for held in read_toml(FILE)["preset"]:
        try:
            checked(TrainingOptions, held["options"])
        except CrucibleError as problem:
            raise CrucibleError(f"{FILE}: preset {held['name']}: {problem}") from None
        found.append(Preset(held["name"], tuple(held["families"]), held["options"]))
    return tuple(found)


def family_of(structure: Structure) -> str:
    """The family whose presets suit a model; small ones have that of the demo checkpoint."""
    small = structure.unet.model_channels < SD15.unet.model_channels
    return DEMO if structure.family is Family.SD1 and small else structure.family.value


def presets_for(family: str) -> list[Preset]:
    """Those of a family, in order."""
    return [each for each in presets() if family in each.families]
