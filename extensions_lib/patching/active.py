"""The set of networks in force on a loaded model, and its changes."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from extensions_lib.adapters.merge import TOGETHER, Merge, better_together, merge_each
from extensions_lib.patching.attach import Attached, Buffers, Recipe, parts_of, write
from extensions_lib.patching.by_group import ByGroup, Kept
from extensions_lib.patching.layout import Groups, Layout, Model
from extensions_lib.patching.plan import Planner
from extensions_lib.patching.room import Room
from extensions_lib.patching.rows import Rows
from extensions_lib.patching.unmerged import Unmerged
from extensions_lib.patching.wanted import Wanted, combined, identity


@dataclass
class ApplyReport:
    """What is in force now: on `layers` parameters, of which `changed` were put in or out just now.

    A layer that has networks beside it counts as one. `unfit` has a line for each layer of a
    network that was left out whole, and why; `notes` are sentences on the rest.
    """

    networks: list[str] = field(default_factory=list)
    layers: int = 0
    changed: int = 0
    unfit: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class ActiveSet:
    """Keeps exactly the wanted networks in force on `model`.

    While a set is in force the touched parameters of the model are other objects, so a host clears
    it before it loads other weights into the same modules. Changes take effect between forward
    passes: call from the thread that samples, or hold the host's lock. Calls exclude one another.

    Networks are merged into the weights, or computed beside them where `choice` says so. Pictures
    of one batch may have sets of their own (`wanted.together`): then `rows` is told before each
    pass of the UNet.

    Memory: each touched weight exists twice; `room` says where the clean one lies meanwhile. What a
    set no longer needs is freed when the next non-empty set is applied; `clear` keeps the memory
    for that, `release` frees all of it. `park` also keeps the merged weights themselves, so that
    the same set comes back without computing; not those whose memory the originals need.
    """

    def __init__(self, model: Model, room: Room | None = None) -> None:
        self._planner = Planner(model)
        self._room = room or Room()
        self._lock = threading.Lock()
        self._attached: dict[tuple[int, str], Attached] = {}
        self._parked: dict[tuple[int, str], Attached] = {}
        self._buffers = Buffers()
        self._unmerged = Unmerged(self._by_group, lambda each: self._buffers.give(each.stand_in))
        self._wanted: list[Wanted] = []
        self._report = ApplyReport()

    def apply(self, wanted: Sequence[Wanted]) -> ApplyReport:
        """Make exactly this set active; only layers whose share changes are computed.

        The same network twice adds up, the order does not matter, and a multiplier of 0 leaves that
        part alone. If anything fails, every base tensor is back in place and the error is raised.
        """
        return self._apply(wanted, self._planner.layout)

    def _apply(
        self, wanted: Sequence[Wanted], plan: Callable[[Sequence[Wanted]], Layout]
    ) -> ApplyReport:
        started = time.perf_counter()
        # A host may call from inference mode; tensors made there could not be written to later.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            wanted = combined(wanted)
            if identity(wanted) == identity(self._wanted):
                return replace(self._report, changed=0, seconds=time.perf_counter() - started)
            try:
                changed, unfit = self._change_to(wanted, plan(wanted))
            except BaseException:
                self._clear()
                raise
            names = [each.network.name for each in wanted]
            self._wanted = wanted
            layers = len(self._attached) + len(self._unmerged)
            self._report = ApplyReport(names, layers, changed, unfit)
            self._report.seconds = time.perf_counter() - started
            return self._report

    def change(self, wanted: Sequence[Wanted]) -> None:
        """Apply, between two steps of sampling: nothing but weights has changed on the way."""
        self._apply(wanted, self._planner.next_layout)

    def encode(self, wanted: Sequence[Wanted]) -> None:
        """Apply, between two texts to be encoded, with other weights on the text encoders alone."""
        self.apply(wanted)

    def rows(self, pictures: Sequence[int]) -> None:
        """Say of which picture, from 0, each sample is that the UNet is asked about next."""
        self._unmerged.rows.set(pictures)

    def clear(self) -> None:
        """Put every original parameter object back; the memory is kept for the next set."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._clear()

    def park(self) -> None:
        """Put every original parameter object back, and keep the merged weights.

        Between two pictures the model is then clean for whoever else uses it. Applying the same
        set again costs no computing, unless the base weights have changed in the meantime.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            leaving = self._leave()
            self._unmerged.park()
            self._wanted, self._report = [], ApplyReport()
            for attached in leaving:
                if attached.come_back():
                    attached.park()
                    self._parked[attached.place] = attached

    def release(self) -> None:
        """Clear, and free the memory."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._clear()
            self._buffers.empty()

    @property
    def nbytes(self) -> int:
        """Bytes of merged weights, in force or kept."""
        merged = [*self._attached.values(), *self._parked.values()]
        total = sum(each.stand_in.nbytes for each in merged)
        return total + self._unmerged.nbytes + self._buffers.nbytes

    def _clear(self) -> None:
        leaving = self._leave()
        self._planner.keep_moved([])
        self._wanted, self._report = [], ApplyReport()
        self._unmerged.clear()
        self._give_up_parked()
        for attached in leaving:
            self._come_back(attached)

    def _leave(self) -> list[Attached]:
        """Puts every original object back; gives what was in force, which is no longer known here.

        That cannot fail, where moving an original to another device afterwards can.
        """
        leaving = list(self._attached.values())
        for attached in leaving:
            attached.put_back()
            self._room.leave(attached)
        self._unmerged.take_out()
        self._attached = {}
        return leaving

    def _come_back(self, attached: Attached) -> None:
        if attached.come_back():
            self._buffers.give(attached.stand_in)

    def _give_up_parked(self) -> None:
        for attached in self._parked.values():
            self._buffers.give(attached.stand_in)
        self._parked.clear()

    def _change_to(self, wanted: Sequence[Wanted], layout: Layout) -> tuple[int, list[str]]:
        changed = self._make_room(layout)
        self._room.begin()
        some: list[tuple[Attached, Recipe]] = []
        size = 0
        for recipe in layout.recipes.values():
            attached = self._begun(recipe)
            if attached is None:
                continue
            changed += 1
            if attached.signature == recipe.signature:
                self._put_in(attached)
                continue
            some.append((attached, recipe))
            size += attached.stand_in.numel()
            # One by one where nothing is gained by more: then each finds the room of those before.
            if not better_together(attached.stand_in) or size >= TOGETHER:
                self._write(some)
                some, size = [], 0
        self._write(some)
        changed += self._unmerged.bring(layout)
        if layout.recipes or layout.groups:
            self._buffers.empty()
        self._planner.keep_moved(wanted)
        return changed, layout.unfit

    def _make_room(self, layout: Layout) -> int:
        """Puts back what the layout leaves alone, and frees what was parked for it."""
        gone = self._attached.keys() - layout.recipes.keys()
        for place in gone:
            self._detach(place)
        for place in self._parked.keys() - layout.recipes.keys():
            self._buffers.give(self._parked.pop(place).stand_in)
        return len(gone) + self._unmerged.take_out_others(layout)

    def _begun(self, recipe: Recipe) -> Attached | None:
        """The parameter that is to become what the recipe says, None where it is that.

        One that only has to go into its module has the recipe's signature.
        """
        attached = self._attached.get(recipe.place)
        if attached is not None:
            if attached.signature == recipe.signature:
                return None
            attached.follow()
            attached.signature = []
            return attached
        parked = self._parked.pop(recipe.place, None)
        if parked is not None:
            if parked.signature == recipe.signature and parked.still_true():
                return parked
            self._buffers.give(parked.stand_in)
        return self._new(recipe)

    def _write(self, some: Sequence[tuple[Attached, Recipe]]) -> None:
        """Computes merged weights, and puts those into their modules that are new."""
        merges: list[Merge] = []
        for attached, recipe in some:
            merges += parts_of(attached.stand_in, attached.base, recipe)
        merge_each(merges)
        for attached, recipe in some:
            attached.signature = recipe.signature
            if attached.place not in self._attached:
                self._put_in(attached)

    def _put_in(self, attached: Attached) -> None:
        self._attached[attached.place] = attached
        attached.put_in()
        self._room.settle(attached)

    def _new(self, recipe: Recipe) -> Attached:
        """A parameter and memory for its merged weight, not yet in its module."""
        original, absent = recipe.original()
        stand_in = self._buffers.take(original)
        return Attached(recipe.module, recipe.name, original, stand_in, absent=absent)

    def _merged(self, recipe: Recipe) -> Attached:
        """A merged weight, not yet in its module, where the original lies."""
        attached = self._new(recipe)
        write(attached.stand_in, attached.base, recipe)
        attached.signature = recipe.signature
        return attached

    def _by_group(self, groups: Groups, rows: Rows) -> ByGroup:
        merged = [
            {name: self._merged(recipe) for name, recipe in recipes.items()}
            for recipes in groups.recipes
        ]
        return Kept(groups, merged, rows)

    def _detach(self, place: tuple[int, str]) -> None:
        attached = self._attached.pop(place)
        attached.put_back()
        self._room.leave(attached)
        self._come_back(attached)
