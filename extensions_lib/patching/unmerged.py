"""The layers that compute networks beside their weight, or by groups of pictures: their life."""

from __future__ import annotations

from collections.abc import Callable

from extensions_lib.patching.attach import Attached
from extensions_lib.patching.by_group import ByGroup
from extensions_lib.patching.layout import Groups, Layout, Side
from extensions_lib.patching.rows import Rows
from extensions_lib.patching.side_path import SidePath

MakeGroups = Callable[[Groups, Rows], ByGroup]
Signature = tuple[object, ...]


class Unmerged:
    """What stands around the forward of layers of one model; nothing at first.

    `make_groups` makes what computes a layer by groups; `give_up` takes back a merged parameter
    that it kept.
    """

    def __init__(self, make_groups: MakeGroups, give_up: Callable[[Attached], None]) -> None:
        self.rows = Rows()
        self._make_groups, self._give_up = make_groups, give_up
        self._sides: dict[int, tuple[Signature, SidePath]] = {}
        self._groups: dict[int, tuple[Signature, ByGroup]] = {}
        # What was in force, without its place around the layers: the same may come back.
        self._kept_sides: dict[int, tuple[Signature, SidePath]] = {}
        self._kept_groups: dict[int, tuple[Signature, ByGroup]] = {}

    def __len__(self) -> int:
        return len(self._sides) + len(self._groups)

    @property
    def nbytes(self) -> int:
        """Bytes of factors and merged weights, in force or kept."""
        sides = [*self._sides.values(), *self._kept_sides.values()]
        merged = [each for _, group in self._all_groups() for each in group.attached]
        return sum(side.nbytes for _, side in sides) + sum(e.stand_in.nbytes for e in merged)

    def take_out_others(self, layout: Layout) -> int:
        """Takes away what the layout does not have; how many layers that is."""
        sides = [self._sides.pop(at)[1] for at in self._sides.keys() - layout.sides.keys()]
        groups = [self._groups.pop(at)[1] for at in self._groups.keys() - layout.groups.keys()]
        for side in sides:
            side.take_out()
        for group in groups:
            group.take_out()
            self._give_up_all(group)
        return len(sides) + len(groups)

    def bring(self, layout: Layout) -> int:
        """Puts the layout's sides and groups in force; how many layers changed.

        The originals of groups must lie in their modules.
        """
        changed = sum(self._bring_side(side) for side in layout.sides.values())
        changed += sum(self._bring_groups(each) for each in layout.groups.values())
        self._forget_kept()
        return changed

    def _bring_side(self, side: Side) -> bool:
        at, signature = id(side.place.module), side.signature
        known = self._sides.get(at) or self._kept_sides.pop(at, None)
        if known is None or known[0] != signature:
            if known is not None:
                known[1].take_out()
            adapters = [part.adapter for part in side.parts]
            biases = [None if part.bias is None else part.bias.diff for part in side.parts]
            known = signature, SidePath(side.place.module, side.shape, adapters, biases, self.rows)
        fresh = self._sides.get(at) is not known
        self._sides[at] = known
        path, multipliers = known[1], [part.multiplier for part in side.parts]
        changed = fresh or path.multipliers != multipliers
        path.multipliers = multipliers
        path.put_in()
        return changed

    def _bring_groups(self, groups: Groups) -> bool:
        at, signature = id(groups.module), groups.signature
        if at in self._groups and self._groups[at][0] == signature:
            return False
        kept = self._kept_groups.pop(at, None)
        former = self._groups.pop(at, None)
        if kept is not None and kept[0] == signature and _still_true(kept[1]):
            self._groups[at] = kept
        else:
            for _, old in filter(None, (kept, former)):
                old.take_out()
                self._give_up_all(old)
            self._groups[at] = signature, self._make_groups(groups, self.rows)
        self._groups[at][1].put_in()
        return True

    def take_out(self) -> None:
        """Takes everything away from the layers; cannot fail."""
        for _, side in self._sides.values():
            side.take_out()
        for _, group in self._groups.values():
            group.take_out()

    def park(self) -> None:
        """Takes everything away from the layers, and keeps it."""
        self.take_out()
        for _, group in self._groups.values():
            for attached in group.attached:
                attached.park()
        self._kept_sides |= self._sides
        self._kept_groups |= self._groups
        self._sides, self._groups = {}, {}

    def clear(self) -> None:
        """Takes everything away and keeps nothing."""
        self.take_out()
        for _, group in self._all_groups():
            self._give_up_all(group)
        self._sides, self._groups = {}, {}
        self._kept_sides, self._kept_groups = {}, {}

    def _forget_kept(self) -> None:
        for _, group in self._kept_groups.values():
            self._give_up_all(group)
        self._kept_sides, self._kept_groups = {}, {}

    def _give_up_all(self, group: ByGroup) -> None:
        for attached in group.attached:
            self._give_up(attached)

    def _all_groups(self) -> list[tuple[Signature, ByGroup]]:
        return [*self._groups.values(), *self._kept_groups.values()]


def _still_true(group: ByGroup) -> bool:
    return all(attached.still_true() for attached in group.attached)
