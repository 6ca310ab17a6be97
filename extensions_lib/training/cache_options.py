"""The options of a training run from which its caches on disk follow."""

from __future__ import annotations

from dataclasses import dataclass

from extensions_lib.datasets.options import DataOptions
from extensions_lib.training.option_groups import PromptOptions


@dataclass(frozen=True)
class Caching(DataOptions, PromptOptions):
    """What is encoded ahead: latents always, text states where one of their options says so."""
