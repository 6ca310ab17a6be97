"""The algebra of networks: each algorithm once, as pure tensor functions; imports torch alone."""

from collections.abc import Mapping

from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError
from extensions_lib.adapters.lora import LoRA
from extensions_lib.adapters.merge import merged

__all__ = ["KINDS", "Adapter", "AdapterError", "LoRA", "adapter_from", "merged"]

# The first kind that matches a layer's parts has it: a kind that wraps others stands before them.
KINDS: tuple[type[Adapter], ...] = (LoRA,)


def adapter_from(parts: Mapping[str, Tensor]) -> Adapter:
    """The adapter that these parts of one layer make; raises AdapterError if none is known."""
    for kind in KINDS:
        if kind.matches(parts):
            return kind.from_tensors(parts)
    raise AdapterError(f"no known algorithm has the parts {', '.join(sorted(parts))}")
