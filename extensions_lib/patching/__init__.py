"""Networks onto a live model and off again: the base weights are never written to."""

from extensions_lib.patching.active import ActiveSet, ApplyReport
from extensions_lib.patching.plan import Planner, Shares, Wanted

__all__ = ["ActiveSet", "ApplyReport", "Planner", "Shares", "Wanted"]
