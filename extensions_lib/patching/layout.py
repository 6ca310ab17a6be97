"""The layout of networks on a model's layers: merged, beside them, or by groups of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from extensions_lib.adapters.base import Adapter
from extensions_lib.adapters.full import Full
from extensions_lib.patching.attach import Recipe, Rows
from extensions_lib.patching.choice import Course
from extensions_lib.patching.rows import Multiplier, weight_of

Recipes = dict[tuple[int, str], Recipe]
"""What parameters become, by module (its id) and name."""


class Model(Protocol):
    """What is asked of a loaded model: its layers by canonical name (models.LoadedModel).

    A value of `layers` may say `transposed`; `layer` gives the module, the name of its parameter
    and the layer's rows in it, or raises KeyError.
    """

    @property
    def layers(self) -> Mapping[str, Any]: ...

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]: ...


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
        return replace(self, name=self.bias_name, transposed=False)

    @property
    def bias_name(self) -> str:
        return self.name.replace("weight", "bias")

    @property
    def device(self) -> str:
        """The type of device on which the weight is."""
        return "cpu" if self.weight is None else self.weight.device.type

    @property
    def weight(self) -> nn.Parameter | None:
        """What is there now, original or merged."""
        return self.module._parameters.get(self.name)


@dataclass(frozen=True)
class Part:
    """What one network does to one layer: `bias` is its change of the layer's bias.

    `signed` says by content which adapter it is.
    """

    adapter: Adapter
    bias: Full | None
    multiplier: Multiplier
    course: Course | None
    signed: tuple[object, ...]

    def at(self, multiplier: Multiplier) -> Part:
        """The same at another multiplier."""
        return Part(self.adapter, self.bias, multiplier, self.course, self.signed)


@dataclass(frozen=True)
class Side:
    """The parts that are computed beside a layer; `shape` is that of its weight."""

    place: Place
    shape: tuple[int, ...]
    parts: Sequence[Part]

    @property
    def signature(self) -> tuple[object, ...]:
        """Two sides of one layer with equal signatures differ in their multipliers alone."""
        return tuple(part.signed for part in self.parts)


@dataclass(frozen=True)
class Groups:
    """Pictures by what a layer's parameters become for them: `of[picture]` is its group.

    Each group has its recipes by the parameter's name.
    """

    module: nn.Module
    of: tuple[int, ...]
    recipes: Sequence[Mapping[str, Recipe]]

    @classmethod
    def of_pictures(cls, module: nn.Module, pictures: Sequence[Mapping[str, Recipe]]) -> Groups:
        """Those whose recipes are the same make a group."""
        numbers: dict[str, int] = {}
        kept: list[Mapping[str, Recipe]] = []
        of = []
        for recipes in pictures:
            signature = repr({name: recipe.signature for name, recipe in recipes.items()})
            if signature not in numbers:
                numbers[signature] = len(kept)
                kept.append(recipes)
            of.append(numbers[signature])
        return cls(module, tuple(of), kept)

    @property
    def signature(self) -> tuple[object, ...]:
        """Two with equal signatures on one layer give equal bits."""
        return self.of, [[(name, r.signature) for name, r in g.items()] for g in self.recipes]


@dataclass
class Layout:
    """What a set of networks makes of a model's layers.

    `recipes` by module and parameter; `sides` and `groups` by module. `unfit` has a line for each
    layer of a network that was left out, and why.
    """

    recipes: Recipes = field(default_factory=dict)
    sides: dict[int, Side] = field(default_factory=dict)
    groups: dict[int, Groups] = field(default_factory=dict)
    unfit: list[str] = field(default_factory=list)

    def forget(self, place: Place) -> None:
        """Leaves out a layer that has its parameters for itself, as those of a UNet have."""
        module = id(place.module)
        for name in (place.name, place.bias_name):
            self.recipes.pop((module, name), None)
        self.sides.pop(module, None)
        self.groups.pop(module, None)


def add(recipes: Recipes, place: Place, parts: Sequence[Part], picture: int) -> None:
    """Adds the parts of one layer, as they are for a picture, to the recipes."""
    for part in parts:
        multiplier = weight_of(part.multiplier, picture)
        if multiplier == 0:
            continue
        signed = (*part.signed, multiplier)
        if part.adapter.changes_weight:
            _recipe(recipes, place).add(place.rows, part.adapter, multiplier, signed)
        if part.bias is not None:
            _recipe(recipes, place.bias).add(place.rows, part.bias, multiplier, signed)


def _recipe(recipes: Recipes, place: Place) -> Recipe:
    at = (id(place.module), place.name)
    return recipes.setdefault(at, Recipe(place.module, place.name, place.transposed))
