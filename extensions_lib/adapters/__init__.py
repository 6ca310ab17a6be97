"""The algebra of networks: each algorithm once, as pure tensor functions; imports torch alone."""

from collections.abc import Mapping

from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError
from extensions_lib.adapters.boft import BOFT
from extensions_lib.adapters.dora import DoRA
from extensions_lib.adapters.full import Full
from extensions_lib.adapters.glora import GLoRA
from extensions_lib.adapters.ia3 import IA3
from extensions_lib.adapters.inputs import InputRotation
from extensions_lib.adapters.loha import LoHa
from extensions_lib.adapters.lokr import LoKr
from extensions_lib.adapters.lora import LoRA
from extensions_lib.adapters.merge import Merge, merge_each, merged
from extensions_lib.adapters.norm import Norm
from extensions_lib.adapters.oft import OFT
from extensions_lib.adapters.wrappers import Biased, Sparse

__all__ = [
    "BOFT",
    "IA3",
    "KINDS",
    "OFT",
    "WRAPPERS",
    "Adapter",
    "AdapterError",
    "Biased",
    "DoRA",
    "Full",
    "GLoRA",
    "InputRotation",
    "LoHa",
    "LoKr",
    "LoRA",
    "Merge",
    "Norm",
    "Sparse",
    "adapter_from",
    "merge_each",
    "merged",
]

# The first kind that matches a layer's parts has it. OFT reads BOFT too, whose names are the same.
KINDS: tuple[type[Adapter], ...] = (LoRA, LoHa, LoKr, GLoRA, IA3, InputRotation, OFT, Norm, Full)
# Each takes its own parts and leaves the rest to a kind; looked for first, the outermost first.
WRAPPERS: tuple[type[Adapter], ...] = (DoRA, Biased, Sparse)


def adapter_from(parts: Mapping[str, Tensor]) -> Adapter:
    """The adapter that these parts of one layer make; raises AdapterError if none is known."""
    for kind in (*WRAPPERS, *KINDS):
        if kind.matches(parts):
            return kind.from_tensors(parts)
    raise AdapterError(f"no known algorithm has the parts {', '.join(sorted(parts))}")
