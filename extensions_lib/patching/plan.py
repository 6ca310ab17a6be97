"""What a set of networks makes of each parameter of a model: the plan that is then carried out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn

from extensions_lib.adapters.base import Adapter, AdapterError
from extensions_lib.adapters.full import Full
from extensions_lib.patching.attach import Recipe, Rows

ShapeOf = Callable[["Tensor | None"], "tuple[int, ...] | str"]


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
class Shares:
    """How much of a network's multiplier each layer has: 1 where `of` does not name it.

    `key` stands for the whole: shares with one key are the same. Keys have an order.
    """

    key: tuple[object, ...]
    of: Mapping[str, float] = field(compare=False)


@dataclass(frozen=True)
class Wanted:
    """A network, its multipliers for text encoders and UNet, and the ranks kept (None: all)."""

    network: Source
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None
    shares: Shares | None = None

    def multiplier(self, canonical: str) -> float:
        whole = self.te if canonical.startswith("te") else self.unet
        return whole if self.shares is None else whole * self.shares.of.get(canonical, 1.0)

    @property
    def part(self) -> tuple[Any, int, str]:
        """What of which network: those that agree in it add up, and it gives them an order."""
        shares = "" if self.shares is None else repr(self.shares.key)
        return self.network.key, -1 if self.dyn is None else self.dyn, shares


def combined(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Each network once, its multipliers added up, those with none left out, in canonical order."""
    groups: dict[tuple[Any, int, str], list[Wanted]] = {}
    for each in wanted:
        groups.setdefault(each.part, []).append(each)
    sums = (
        # fsum rounds once, so the order of the parts cannot show.
        replace(group[0], te=math.fsum(w.te for w in group), unet=math.fsum(w.unet for w in group))
        for _, group in sorted(groups.items(), key=lambda item: item[0])
    )
    return [each for each in sums if each.te != 0 or each.unet != 0]


def identity(wanted: Iterable[Wanted]) -> list[tuple[object, ...]]:
    """What tells one set of networks from another."""
    return [(*each.part, each.te, each.unet) for each in wanted]


def plain_shape(weight: Tensor | None) -> tuple[int, ...] | str:
    """The shape of a floating-point weight in memory."""
    if weight is None or weight.is_meta or not weight.is_floating_point():
        held = "nothing" if weight is None else f"{weight.dtype} on {weight.device}"
        return f"expected a weight in memory of a floating-point type, found {held}"
    return tuple(weight.shape)


class Planner:
    """Turns wanted networks into recipes on `model`.

    `shape_of` gives the shape that a parameter in memory stands for, or says in words why nothing
    can be added to it; a host that packs weights into other types has its own.
    """

    def __init__(self, model: Model, shape_of: ShapeOf = plain_shape) -> None:
        self._model, self._shape_of = model, shape_of
        self._places: dict[str, Place] = {}
        # Adapters on the device of their layer, as long as their network is wanted.
        self._moved: dict[tuple[Any, str], Adapter] = {}

    def recipes(self, wanted: Sequence[Wanted]) -> tuple[dict[tuple[int, str], Recipe], list[str]]:
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
                placed = self._placed(each, canonical, adapter)
                signed = (canonical, each.network.key, each.dyn, multiplier)
                if adapter.changes_weight:
                    _recipe(recipes, place).add(place.rows, placed, multiplier, signed)
                if adapter.changes_bias:
                    try:
                        bias = _bias(place, placed)
                    except AdapterError as error:
                        unfit.append(f"{each.network.name}: {canonical}: {error}")
                        continue
                    _recipe(recipes, place.bias).add(place.rows, bias, multiplier, signed)
        for recipe in recipes.values():
            recipe.signature.sort(key=lambda part: str(part[0]))
        return recipes, unfit

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
        moved = self._moved.get((each.network.key, canonical), adapter).to(weight.device)
        if moved is not adapter:
            self._moved[each.network.key, canonical] = moved
        return moved if each.dyn is None else moved.first_ranks(each.dyn)

    def keep_moved(self, wanted: Sequence[Wanted]) -> None:
        """Forget what was copied to other devices for networks that are no longer wanted."""
        keys = {each.network.key for each in wanted}
        self._moved = {at: adapter for at, adapter in self._moved.items() if at[0] in keys}


def _recipe(recipes: dict[tuple[int, str], Recipe], place: Place) -> Recipe:
    at = (id(place.module), place.name)
    return recipes.setdefault(at, Recipe(place.module, place.name, place.transposed))


def _bias(place: Place, adapter: Adapter) -> Adapter:
    """What the adapter does to the layer's bias, as a change of that parameter."""
    bias = place.bias.weight
    own = None if bias is None else bias.detach()[slice(*place.rows)]
    change = adapter.bias_delta(own)
    assert change is not None  # it changes the bias
    return Full(diff=change)


@dataclass(frozen=True)
class Place:
    """Where a layer's weight is: a parameter of a module, or a part of its rows."""

    module: nn.Module
    name: str
    part: slice
    transposed: bool
    rows: Rows = (0, 0)

    @classmethod
    def find(cls, model: Model, canonical: str) -> Place:
        """Raises KeyError where the model has no such layer."""
        transposed = bool(getattr(model.layers[canonical], "transposed", False))
        module, name, part = model.layer(canonical)
        return cls(module, name, part or slice(None), transposed)

    def among(self, length: int) -> Place:
        """With `rows` as numbers, in a weight of `length` rows."""
        start, stop, _ = self.part.indices(length)
        return self if self.rows == (start, stop) else replace(self, rows=(start, stop))

    @property
    def bias(self) -> Place:
        """Where the layer's bias is, or would be."""
        return replace(self, name=self.name.replace("weight", "bias"), transposed=False)

    @property
    def weight(self) -> nn.Parameter | None:
        """What is there now, original or merged."""
        return self.module._parameters.get(self.name)
