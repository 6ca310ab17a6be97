"""Networks on disk: names, aliases, previews, notes, hashes; without opening what has not changed.

Needs no torch.
"""

from extensions_lib.library.entry import Entry
from extensions_lib.library.index import Library
from extensions_lib.library.shelf import (
    AESTHETICS,
    EMBEDDINGS,
    HYPERNETWORKS,
    LLLITES,
    NETWORKS,
    Shelf,
)

__all__ = [
    "AESTHETICS",
    "EMBEDDINGS",
    "HYPERNETWORKS",
    "LLLITES",
    "NETWORKS",
    "Entry",
    "Library",
    "Shelf",
]
