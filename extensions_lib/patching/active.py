"""The set of networks in force on a loaded model, and its changes."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from extensions_lib.patching.attach import Attached, Buffers, Recipe, write
from extensions_lib.patching.plan import Model, Planner, Wanted, combined, identity


@dataclass
class ApplyReport:
    """What is in force now: `layers` parameters, `changed` of them put in or taken out just now.

    `unfit` has a line for each layer of a network that was left out whole, and why.
    """

    networks: list[str] = field(default_factory=list)
    layers: int = 0
    changed: int = 0
    unfit: list[str] = field(default_factory=list)
    seconds: float = 0.0


class ActiveSet:
    """Keeps exactly the wanted networks in force on `model`.

    While a set is in force the touched parameters of the model are other objects, so a host clears
    it before it loads other weights into the same modules. Changes take effect between forward
    passes: call from the thread that samples, or hold the host's lock. Calls exclude one another.

    Memory: each touched weight exists twice. What a set no longer needs is freed when the next
    non-empty set is applied; `clear` keeps the memory for that, `release` frees all of it. `park`
    also keeps the merged weights themselves, so that the same set comes back without computing.
    """

    def __init__(self, model: Model) -> None:
        self._planner = Planner(model)
        self._lock = threading.Lock()
        self._attached: dict[tuple[int, str], Attached] = {}
        self._parked: dict[tuple[int, str], Attached] = {}
        self._buffers = Buffers()
        self._wanted: list[Wanted] = []
        self._report = ApplyReport()

    def apply(self, wanted: Sequence[Wanted]) -> ApplyReport:
        """Make exactly this set active; only layers whose share changes are computed.

        The same network twice adds up, the order does not matter, and a multiplier of 0 leaves that
        part alone. If anything fails, every base tensor is back in place and the error is raised.
        """
        started = time.perf_counter()
        # A host may call from inference mode; tensors made there could not be written to later.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            wanted = combined(wanted)
            if identity(wanted) == identity(self._wanted):
                return replace(self._report, changed=0, seconds=time.perf_counter() - started)
            try:
                changed, unfit = self._change_to(wanted)
            except BaseException:
                self._clear()
                raise
            names = [each.network.name for each in wanted]
            self._wanted = wanted
            self._report = ApplyReport(names, len(self._attached), changed, unfit)
            self._report.seconds = time.perf_counter() - started
            return self._report

    def change(self, wanted: Sequence[Wanted]) -> None:
        """Apply, between two steps of sampling."""
        self.apply(wanted)

    def clear(self) -> None:
        """Put every original parameter object back; the memory is kept for the next set."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._clear()

    def park(self) -> None:
        """Put every original parameter object back, and keep the merged weights.

        Between two pictures the model is then clean for whoever else uses it. Applying the same
        set again costs no computing, unless the base weights have changed in the meantime.
        """
        with self._lock:
            for attached in self._attached.values():
                attached.put_back()
            for place in list(self._attached):
                attached = self._attached.pop(place)
                with torch.inference_mode(False), torch.no_grad():
                    attached.follow()
                attached.park()
                self._parked[place] = attached
            self._wanted, self._report = [], ApplyReport()

    def release(self) -> None:
        """Clear, and free the memory."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._clear()
            self._buffers.empty()

    @property
    def nbytes(self) -> int:
        """Bytes of merged weights, in force or kept."""
        merged = [*self._attached.values(), *self._parked.values()]
        return sum(each.stand_in.nbytes for each in merged) + self._buffers.nbytes

    def _clear(self) -> None:
        # All objects first: that cannot fail, where moving one to another device can.
        for attached in self._attached.values():
            attached.put_back()
        self._planner.keep_moved([])
        self._wanted, self._report = [], ApplyReport()
        for place in list(self._attached):
            self._detach(place)
        self._give_up_parked()

    def _give_up_parked(self) -> None:
        for attached in self._parked.values():
            self._buffers.give(attached.stand_in)
        self._parked.clear()

    def _change_to(self, wanted: Sequence[Wanted]) -> tuple[int, list[str]]:
        recipes, unfit = self._planner.recipes(wanted)
        gone = self._attached.keys() - recipes.keys()
        for place in gone:
            self._detach(place)
        changed = len(gone)
        for place in self._parked.keys() - recipes.keys():
            self._buffers.give(self._parked.pop(place).stand_in)
        for recipe in recipes.values():
            changed += self._attach(recipe)
        if recipes:
            self._buffers.empty()
        self._planner.keep_moved(wanted)
        return changed, unfit

    def _attach(self, recipe: Recipe) -> bool:
        """Bring one parameter to its recipe; whether there was anything to do."""
        attached = self._attached.get(recipe.place)
        if attached is not None and attached.signature == recipe.signature:
            return False
        parked = self._parked.pop(recipe.place, None)
        if parked is not None and parked.signature == recipe.signature and parked.still_true():
            self._attached[recipe.place] = parked
            parked.put_in()
            return True
        if parked is not None:
            self._buffers.give(parked.stand_in)
        if attached is None:
            original, absent = recipe.original()
            stand_in = self._buffers.take(original)
            attached = Attached(recipe.module, recipe.name, original, stand_in, absent=absent)
        attached.follow()
        write(attached.stand_in, attached.base, recipe)
        attached.signature = recipe.signature
        self._attached[recipe.place] = attached
        attached.put_in()
        return True

    def _detach(self, place: tuple[int, str]) -> None:
        attached = self._attached[place]
        attached.put_back()
        del self._attached[place]
        attached.follow()
        self._buffers.give(attached.stand_in)
