"""The set of networks in force on a loaded model, and its changes."""

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from extensions_lib.adapters.base import Adapter
from extensions_lib.patching.attach import Attached, Buffers, Recipe, Rows, write


class Model(Protocol):
    """What is asked of a loaded model: its layers by canonical name (models.LoadedModel).

    A value of `layers` may say `transposed`; `layer` gives the module, the name of its parameter
    and the layer's rows in it, or raises KeyError.
    """

    @property
    def layers(self) -> Mapping[str, Any]: ...

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]: ...


class Source(Protocol):
    """What is asked of a network: `key` is the identity of its content, not its name.

    Keys are hashable and have an order among themselves, e.g. (path, size, time).
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> Any: ...

    @property
    def adapters(self) -> Mapping[str, Adapter]: ...


@dataclass(frozen=True)
class Wanted:
    """A network, its multipliers for text encoders and UNet, and the ranks kept (None: all)."""

    network: Source
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None

    def multiplier(self, canonical: str) -> float:
        return self.te if canonical.startswith("te") else self.unet


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
        self._model = model
        self._lock = threading.Lock()
        self._attached: dict[tuple[int, str], Attached] = {}
        self._parked: dict[tuple[int, str], Attached] = {}
        self._buffers = Buffers()
        self._places: dict[str, _Place] = {}
        # Adapters on the device of their layer, as long as their network is in force.
        self._moved: dict[tuple[Any, str], Adapter] = {}
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
            if _identity(wanted) == _identity(self._wanted):
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
        self._moved.clear()
        self._wanted, self._report = [], ApplyReport()
        for place in list(self._attached):
            self._detach(place)
        self._give_up_parked()

    def _give_up_parked(self) -> None:
        for attached in self._parked.values():
            self._buffers.give(attached.stand_in)
        self._parked.clear()

    def _change_to(self, wanted: Sequence[Wanted]) -> tuple[int, list[str]]:
        recipes, unfit = self._recipes(wanted)
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
        keys = {each.network.key for each in wanted}
        self._moved = {at: adapter for at, adapter in self._moved.items() if at[0] in keys}
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
            original = recipe.module._parameters[recipe.name]
            assert original is not None
            stand_in = self._buffers.take(original)
            attached = Attached(recipe.module, recipe.name, original, stand_in)
        attached.follow()
        write(attached.stand_in, attached.original, recipe)
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

    def _recipes(self, wanted: Sequence[Wanted]) -> tuple[dict[tuple[int, str], Recipe], list[str]]:
        """What each touched parameter is to become, and what does not fit the model."""
        recipes: dict[tuple[int, str], Recipe] = {}
        unfit: list[str] = []
        for each in wanted:
            if each.dyn is not None and each.dyn < 1:
                unfit.append(f"{each.network.name}: dyn={each.dyn} keeps no rank of it")
                continue
            for canonical, adapter in each.network.adapters.items():
                multiplier = each.multiplier(canonical)
                if multiplier == 0:
                    continue
                if problem := self._problem(canonical, adapter):
                    unfit.append(f"{each.network.name}: {canonical}: {problem}")
                    continue
                place = self._places[canonical]
                recipe = recipes.setdefault(
                    (id(place.module), place.name),
                    Recipe(place.module, place.name, place.transposed),
                )
                placed = self._placed(each, canonical, adapter)
                recipe.stacks.setdefault(place.rows, []).append((placed, multiplier))
                recipe.signature.append((canonical, each.network.key, each.dyn, multiplier))
        for recipe in recipes.values():
            recipe.signature.sort(key=lambda part: str(part[0]))
        return recipes, unfit

    def _problem(self, canonical: str, adapter: Adapter) -> str | None:
        """Why this adapter cannot be put on the model, None if it can; finds the layer's place."""
        try:
            place = self._places.get(canonical) or _Place.find(self._model, canonical)
        except KeyError:
            return "the model has no such layer"
        self._places[canonical] = place
        weight = place.weight
        if weight is None or weight.is_meta or not weight.is_floating_point():
            held = "nothing" if weight is None else f"{weight.dtype} on {weight.device}"
            return f"expected a weight in memory of a floating-point type, found {held}"
        rest = weight.t().shape[1:] if place.transposed else weight.shape[1:]
        start, stop = place.rows
        return adapter.misfit((stop - start, *rest))

    def _placed(self, each: Wanted, canonical: str, adapter: Adapter) -> Adapter:
        """The adapter on its layer's device, cut to the ranks asked for."""
        weight = self._places[canonical].weight
        assert weight is not None
        moved = self._moved.get((each.network.key, canonical), adapter).to(weight.device)
        if moved is not adapter:
            self._moved[each.network.key, canonical] = moved
        return moved if each.dyn is None else moved.first_ranks(each.dyn)


@dataclass(frozen=True)
class _Place:
    """Where a layer's weight is: its rows in a parameter of a module."""

    module: nn.Module
    name: str
    rows: Rows
    transposed: bool

    @classmethod
    def find(cls, model: Model, canonical: str) -> "_Place":
        """Raises KeyError where the model has no such layer."""
        transposed = bool(getattr(model.layers[canonical], "transposed", False))
        module, name, rows = model.layer(canonical)
        weight = module._parameters.get(name)
        length = 0 if weight is None else weight.shape[-1 if transposed else 0]
        start, stop, _ = (rows or slice(None)).indices(length)
        return cls(module, name, (start, stop), transposed)

    @property
    def weight(self) -> nn.Parameter | None:
        """What is there now, original or merged."""
        return self.module._parameters.get(self.name)


def combined(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each network once, its multipliers added up, those with none left out, in canonical order."""
    groups: dict[tuple[Any, int], list[Wanted]] = {}
    for each in wanted:
        groups.setdefault((each.network.key, -1 if each.dyn is None else each.dyn), []).append(each)
    sums = (
        # fsum rounds once, so the order of the parts cannot show.
        replace(group[0], te=math.fsum(w.te for w in group), unet=math.fsum(w.unet for w in group))
        for _, group in sorted(groups.items(), key=lambda item: item[0])
    )
    return [each for each in sums if each.te != 0 or each.unet != 0]


def _identity(wanted: Iterable[Wanted]) -> list[tuple[object, ...]]:
    return [(each.network.key, each.dyn, each.te, each.unet) for each in wanted]
