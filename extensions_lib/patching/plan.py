"""What a set of networks makes of each parameter of a model: the plan that is then carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from extensions_lib.adapters.base import Adapter, AdapterError
from extensions_lib.adapters.full import Full
from extensions_lib.patching.attach import finer
from extensions_lib.patching.choice import Layer, Share, beside, positions
from extensions_lib.patching.layout import Groups, Layout, Model, Part, Place, Recipes, Side, add
from extensions_lib.patching.rows import is_zero
from extensions_lib.patching.side_path import can_carry
from extensions_lib.patching.wanted import Wanted

ShapeOf = Callable[["Tensor | None"], "tuple[int, ...] | str"]


def plain_shape(weight: Tensor | None) -> tuple[int, ...] | str:
    """The shape of a floating-point weight in memory."""
    if weight is None or weight.is_meta or not weight.is_floating_point():
        held = "nothing" if weight is None else f"{weight.dtype} on {weight.device}"
        return f"expected a weight in memory of a floating-point type, found {held}"
    return tuple(weight.shape)


class Planner:
    """Turns wanted networks into a layout on `model`.

    `shape_of` gives the shape that a parameter in memory stands for, or says in words why nothing
    can be added to it; a host that packs weights into other types has its own. `device` names the
    type of device that samples, where weights may lie elsewhere before that.
    """

    def __init__(
        self,
        model: Model,
        shape_of: ShapeOf = plain_shape,
        device: Callable[[], str] | None = None,
    ) -> None:
        self._model, self._shape_of, self._device = model, shape_of, device
        self._places: dict[str, Place] = {}
        # Adapters on the device of their layer, as long as their network is wanted.
        self._moved: dict[tuple[Any, str], Adapter] = {}
        self._ranks: dict[tuple[Any, ...], int | None] = {}
        self._last: tuple[list[Wanted], list[_Touched], Layout] | None = None

    def layout(self, wanted: Sequence[Wanted]) -> Layout:
        """What each touched layer is to become, and what does not fit the model."""
        layout = Layout()
        layers = self._layers(wanted, layout.unfit)
        for layer in layers.values():
            layer.aside = self._aside(layer)
            self._put(layer, layout)
        for recipe in layout.recipes.values():
            recipe.signature.sort(key=lambda part: str(part[0]))
        self._last = list(wanted), list(layers.values()), layout
        return layout

    def next_layout(self, wanted: Sequence[Wanted]) -> Layout:
        """The layout for the next step of a sampling.

        Where nothing but weights on the UNet differs from the set before, what was decided for each
        layer holds, and only layers of the networks whose weights differ are looked at.
        """
        if self._last is None or not _alike(self._last[0], wanted):
            return self.layout(wanted)
        before, layers, former = self._last
        moved = {n for n, (a, b) in enumerate(zip(before, wanted, strict=True)) if a.unet != b.unet}
        layout = Layout(
            dict(former.recipes), dict(former.sides), dict(former.groups), list(former.unfit)
        )
        for layer in layers:
            if moved.isdisjoint(layer.of) or layer.canonical.startswith("te"):
                continue
            if layer.place.part != slice(None):  # another layer has a share in the parameter
                return self.layout(wanted)
            layer.parts = [
                part.at(wanted[n].multiplier(layer.canonical))
                for n, part in zip(layer.of, layer.parts, strict=True)
            ]
            layout.forget(layer.place)
            self._put(layer, layout)
        self._last = list(wanted), layers, layout
        return layout

    def _layers(self, wanted: Sequence[Wanted], unfit: list[str]) -> dict[str, _Touched]:
        """What each layer gets from each network."""
        layers: dict[str, _Touched] = {}
        for number, each in enumerate(wanted):
            if each.dyn is not None and each.dyn < 1:
                unfit.append(f"{each.network.name}: dyn={each.dyn} keeps no rank of it")
                continue
            for canonical, adapter in each.network.adapters.items():
                multiplier = each.multiplier(canonical)
                course = None if canonical.startswith("te") else each.course
                if is_zero(multiplier) and course is None:
                    continue
                if problem := self._problem(canonical, adapter):
                    unfit.append(f"{each.network.name}: {canonical}: {problem}")
                    continue
                place, bias = self._places[canonical], None
                placed = self._placed(each, canonical, adapter)
                if adapter.changes_bias:
                    try:
                        bias = _bias(place, placed)
                    except AdapterError as error:
                        unfit.append(f"{each.network.name}: {canonical}: {error}")
                signed = (canonical, each.network.key, each.dyn)
                touched = layers.setdefault(canonical, _Touched(canonical, place))
                touched.parts.append(Part(placed, bias, multiplier, course, signed))
                touched.of.append(number)
        return layers

    def _put(self, layer: _Touched, layout: Layout) -> None:
        """Adds a layer to the layout, as it was decided for each of its parts."""
        place, pairs = layer.place, list(zip(layer.parts, layer.aside, strict=True))
        chosen, merged = [p for p, apart in pairs if apart], [p for p, apart in pairs if not apart]
        if chosen:
            layout.sides[id(place.module)] = Side(place, self._shape(place), chosen)
        if not any(isinstance(part.multiplier, tuple) for part in merged):
            add(layout.recipes, place, merged, 0)
            return
        pictures = []
        count = max(len(p.multiplier) for p in merged if isinstance(p.multiplier, tuple))
        for picture in range(count):
            own: Recipes = {}
            add(own, place, merged, picture)
            pictures.append({recipe.name: recipe for recipe in own.values()})
        layout.groups[id(place.module)] = Groups.of_pictures(place.module, pictures)

    def _aside(self, touched: _Touched) -> list[bool]:
        """For each part whether it is computed beside the layer."""
        canonical, place, parts = touched.canonical, touched.place, touched.parts
        differing = any(part.course or isinstance(part.multiplier, tuple) for part in parts)
        if not differing and not _coarse(place):
            return [False] * len(parts)  # the commonest case is not worth a question
        shape = self._shape(place)
        able = place.rows == (0, shape[0]) and not place.transposed
        able = able and can_carry(place.module, place.name)
        course = next((part.course for part in parts if part.course), None)
        layer = Layer(
            shape,
            able,
            _coarse(place),
            1 if course is None else positions(canonical, self._levels, course),
            self._device() if self._device else place.device,
        )
        shares = [
            Share(self._rank(part, shape), part.course, isinstance(part.multiplier, tuple))
            for part in parts
        ]
        return beside(layer, shares)

    @cached_property
    def _levels(self) -> int:
        """Resolutions of the UNet."""
        blocks = (name.split(".")[2] for name in self._model.layers if ".down_blocks." in name)
        return 1 + max((int(number) for number in blocks if number.isdigit()), default=0)

    def _rank(self, part: Part, shape: tuple[int, ...]) -> int | None:
        """Ranks of its low-rank form, 0 for a bias alone, None where there is no such form."""
        if not part.adapter.changes_weight:
            return 0
        if part.signed not in self._ranks:
            factors = part.adapter.low_rank(shape)
            self._ranks[part.signed] = None if factors is None else len(factors.down)
        return self._ranks[part.signed]

    def _shape(self, place: Place) -> tuple[int, ...]:
        """As it lies in memory; it is known to have one."""
        shape = self._shape_of(place.weight)
        assert not isinstance(shape, str)
        return shape

    def _problem(self, canonical: str, adapter: Adapter) -> str | None:
        """Why this adapter cannot be put on the model, None if it can; finds the layer's place."""
        try:
            place = self._places.get(canonical) or Place.find(self._model, canonical)
        except KeyError:
            return "the model has no such layer"
        shape = self._shape_of(place.weight)
        if isinstance(shape, str):
            return shape
        if place.transposed:
            shape = shape[::-1]
        self._places[canonical] = place = place.among(shape[0])
        start, stop = place.rows
        return adapter.misfit((stop - start, *shape[1:]))

    def _placed(self, each: Wanted, canonical: str, adapter: Adapter) -> Adapter:
        """The adapter on its layer's device, cut to the ranks asked for."""
        weight = self._places[canonical].weight
        assert weight is not None
        at = (each.network.key, canonical)
        moved = self._moved.get(at, adapter).to(weight.device)
        if moved is not adapter:
            self._moved[at] = moved
        return moved if each.dyn is None else moved.first_ranks(each.dyn)

    def keep_moved(self, wanted: Sequence[Wanted]) -> None:
        """Forget what was copied to other devices for networks that are no longer wanted."""
        keys = {each.network.key for each in wanted}
        self._last = self._last if keys else None
        self._moved = {at: adapter for at, adapter in self._moved.items() if at[0] in keys}
        self._ranks = {at: rank for at, rank in self._ranks.items() if at[1] in keys}


@dataclass
class _Touched:
    """A layer that networks touch: `of` has the number of the wanted network of each part."""

    canonical: str
    place: Place
    parts: list[Part] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    aside: list[bool] = field(default_factory=list)


def _alike(before: Sequence[Wanted], now: Sequence[Wanted]) -> bool:
    """Whether two sets touch the same layers in the same ways."""
    return len(before) == len(now) and all(
        (a.part, a.te, a.course) == (b.part, b.te, b.course)
        and isinstance(a.unet, tuple) == isinstance(b.unet, tuple)
        and (a.course is not None or is_zero(a.unet) == is_zero(b.unet))
        for a, b in zip(before, now, strict=True)
    )


def _bias(place: Place, adapter: Adapter) -> Full:
    """What the adapter does to the layer's bias, as a change of that parameter."""
    bias = place.bias.weight
    own = None if bias is None else bias.detach()[slice(*place.rows)]
    change = adapter.bias_delta(own)
    assert change is not None  # it changes the bias
    return Full(diff=change)


def _coarse(place: Place) -> bool:
    """Whether the weight is stored in few bits, and nothing finer is kept beside it."""
    weight = place.weight
    if weight is None or (weight.is_floating_point() and weight.element_size() > 1):
        return False
    return finer(place.module, place.name, weight) is None
