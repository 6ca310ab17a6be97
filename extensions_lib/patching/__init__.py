"""Networks onto a live model and off again: the base weights are never written to."""

from extensions_lib.patching.active import ActiveSet, ApplyReport
from extensions_lib.patching.choice import Course
from extensions_lib.patching.plan import Planner
from extensions_lib.patching.room import Room
from extensions_lib.patching.wanted import Shares, Wanted, combined, together

__all__ = [
    "ActiveSet",
    "ApplyReport",
    "Course",
    "Planner",
    "Room",
    "Shares",
    "Wanted",
    "combined",
    "together",
]
