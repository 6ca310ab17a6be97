"""A thousand random histories: whatever happens to a model, the base stays and the set is exact.

A history applies sets of every kind of network, changes weights while sampling, parks, clears and
releases, loads other checkpoints, and fails in the middle. After each event every base weight has
the bits it had; the same parameter objects are in place where nothing is in force; and what is in
force has the very bits that a fresh computation gives, with the networks in the opposite order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from extensions_lib.adapters import Full, merge
from extensions_lib.patching import ActiveSet, Course, Shares, Wanted, attach
from extensions_lib.patching.room import Room
from tests.adapters.cases import CASES
from tests.adapters.factors import random_lora
from tests.patching.standin import Bits, Net, StandIn

BESIDE = Course(changes=10**9, forwards=1)  # merging so often costs more than anything
SHAPES = sorted({case.shape for case in CASES.values()}, key=lambda shape: (len(shape), shape))
SAMPLES = 2


def layer_for(shape: tuple[int, ...]) -> nn.Module:
    if len(shape) == 1:
        return nn.LayerNorm(shape[0])
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2], padding=shape[2] // 2, bias=shape[2] == 1)


class Zoo(StandIn):
    """A layer of UNet and text encoder for each shape that networks are made for, and StandIn's."""

    PLACES = StandIn.PLACES | {
        f"{part}.{number}": (f"{part}{number}", "weight", None, False, shape)
        for number, shape in enumerate(SHAPES)
        for part in ("unet", "te1")
    }

    def __init__(self, dtype: torch.dtype, weights: int) -> None:
        super().__init__()
        self.layers = {
            name: SimpleNamespace(transposed=place[3]) for name, place in self.PLACES.items()
        }
        for name, (path, _, _, _, shape) in self.PLACES.items():
            if name not in StandIn.PLACES:
                self.tree.add_module(path, layer_for(shape))
        self.tree.requires_grad_(False).to(dtype)
        self.load(weights)

    def load(self, weights: int) -> None:
        """Writes the values of another checkpoint into the same parameters."""
        draw = torch.Generator().manual_seed(weights)
        for parameter in self.tree.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))

    def replace(self, weights: int) -> None:
        """Puts parameters with the values of another checkpoint into the same modules."""
        for module in self.tree.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        self.load(weights)

    def answers(self) -> dict[str, Tensor]:
        """What the linear layers and convolutions make of two samples, one of each picture."""
        found = {}
        for name in self.PLACES:
            module = self.layer(name)[0]
            if isinstance(module, nn.Linear | nn.Conv2d) and "fused" not in self.PLACES[name][0]:
                shape = (SAMPLES, self.PLACES[name][4][1], *([3, 3] * (module.weight.dim() == 4)))
                draw = torch.Generator().manual_seed(5)
                x = torch.randn(shape, generator=draw).to(module.weight.dtype)
                found[name] = module(x)
        return found


def nets() -> list[Net]:
    """One of every case on UNet and text encoder, and two LoRAs over all layers."""
    made = []
    for number, (name, case) in enumerate(CASES.items()):
        place = SHAPES.index(case.shape)
        adapters = {f"unet.{place}": case.adapter(number), f"te1.{place}": case.adapter(-number)}
        made.append(Net(name, f"key{number:03}", adapters))
    for seed in (1, 2):
        wide = {
            name: random_lora(place[4], seed=100 * seed + number)
            for number, (name, place) in enumerate(Zoo.PLACES.items())
            if len(place[4]) > 1
        }
        made.append(Net(f"wide{seed}", f"wide{seed}", wide))
    return made


NETS = {net.name: net for net in nets()}
SHARES = (
    None,
    Shares(("half",), {f"unet.{number}": 0.5 for number in range(len(SHAPES))}),
    Shares(("odd ones",), {f"unet.{number}": number % 2 for number in range(len(SHAPES))}),
)


class Broken(Full):
    """A network that cannot be computed."""

    def _add(self, *_: Any) -> Tensor:
        raise RuntimeError("injected")


BROKEN = Net("broken", "key999", {"unet.1": Broken(diff=torch.zeros(SHAPES[1]))})


# --- what happens -----------------------------------------------------------------------------

WEIGHTS = st.sampled_from([1.0, 0.5, -0.7, 0.0])
UNET = WEIGHTS | st.tuples(WEIGHTS, WEIGHTS)
ONE = st.tuples(
    st.sampled_from(list(NETS)),
    WEIGHTS,
    UNET,
    st.sampled_from([None, None, 2]),  # dyn
    st.sampled_from(range(len(SHARES))),
    st.sampled_from([False, False, True]),  # beside
)
SETS = st.lists(ONE, min_size=1, max_size=4)
FAILURES = ("adapter", "merge", "allocation", "device", "device")
EVENTS = st.one_of(
    st.tuples(st.just("apply"), SETS),
    st.tuples(st.just("apply"), SETS),
    st.tuples(st.just("weight"), WEIGHTS),
    st.tuples(st.just("sampling"), st.lists(WEIGHTS, min_size=2, max_size=3)),
    st.tuples(st.just("fewer"), st.integers(1, 2)),
    st.tuples(st.sampled_from(["park", "clear", "release", "empty", "again"])),
    st.tuples(st.just("checkpoint"), st.sampled_from(["written", "replaced", "other", "half"])),
    st.tuples(st.just("fail"), st.sampled_from(FAILURES), st.integers(1, 4), SETS),
    st.tuples(st.just("fail to leave"), st.sampled_from(["park", "clear"]), st.integers(1, 3)),
)


def built(told: list[tuple[Any, ...]]) -> list[Wanted]:
    """The set that was drawn; it is drawn as text, so that a history can be read."""
    return [
        Wanted(NETS[name], te, unet, dyn, SHARES[shares], BESIDE if beside else None)
        for name, te, unet, dyn, shares, beside in told
    ]


@dataclass(repr=False)
class History:
    """A model and what has happened to it."""

    model: Zoo
    active: ActiveSet
    before: Bits
    wanted: list[Wanted]
    last: list[Wanted]
    checkpoints: int = 1

    @classmethod
    def begin(cls, dtype: torch.dtype, *, tight: bool) -> History:
        model = Zoo(dtype, 1)
        # A device that has room for an original or two.
        room = Room(lambda: 1000, lambda _: 0, torch.clone) if tight else Room()
        return cls(model, ActiveSet(model, room), Bits(model.tree), [], [])

    def happen(self, what: str, *how: Any) -> None:
        getattr(self, what.replace(" ", "_"))(*how)
        self.check()

    # --- events

    def apply(self, told: list[tuple[Any, ...]]) -> None:
        self._apply(built(told))

    def _apply(self, wanted: list[Wanted]) -> None:
        assert self.active.apply(wanted).unfit == []
        self.wanted = self.last = wanted

    def weight(self, weight: float) -> None:
        if self.wanted:
            self._apply([replace(self.wanted[0], unet=weight), *self.wanted[1:]])

    def sampling(self, weights: list[float]) -> None:
        """The weight of the last network changes from step to step."""
        for weight in weights:
            if self.wanted:
                self.active.change([*self.wanted[:-1], replace(self.wanted[-1], unet=weight)])
                self.wanted = [*self.wanted[:-1], replace(self.wanted[-1], unet=weight)]
                self.check()

    def fewer(self, count: int) -> None:
        self._apply(self.wanted[count:])

    def empty(self) -> None:
        self._apply([])

    def again(self) -> None:
        self._apply(self.last)

    def park(self) -> None:
        self.active.park()
        self.wanted = []

    def clear(self) -> None:
        self.active.clear()
        self.wanted = []

    def release(self) -> None:
        self.active.release()
        self.wanted = []
        assert self.active.nbytes == 0

    def checkpoint(self, how: str) -> None:
        """The host's rule: nothing is in force while it loads."""
        self.checkpoints += 1
        if how == "other":
            self.active.release()
            assert self.before.untouched()
            self.model = Zoo(next(self.model.tree.parameters()).dtype, self.checkpoints)
            self.active = ActiveSet(self.model)
        else:
            self.active.park()
            assert self.before.untouched()
            if how == "written":
                self.model.load(self.checkpoints)
            elif how == "replaced":
                self.model.replace(self.checkpoints)
            else:
                self.model.tree.half()
        self.wanted = []
        self.before = Bits(self.model.tree)

    def fail(self, how: str, after: int, told: list[tuple[Any, ...]]) -> None:
        wanted = built(told)
        extra = [Wanted(BROKEN)] if how == "adapter" else []
        with injected(how, after) as injection:
            try:
                self.active.apply([*wanted, *extra])
            except RuntimeError as error:
                assert str(error) == "injected"
                assert self.before.untouched()
                self.wanted = []
                return
        assert not extra and not injection.raised
        self.wanted = self.last = wanted

    def fail_to_leave(self, how: str, after: int) -> None:
        with injected("device", after):
            try:
                getattr(self.active, how)()
            except RuntimeError as error:
                assert str(error) == "injected"
        assert self.before.untouched()
        self.wanted = []

    # --- what must hold

    def check(self) -> None:
        assert self.before.bases_untouched()
        if not self.wanted:
            assert self.before.untouched()
            assert not any("forward" in vars(module) for module in self.model.tree.modules())
            return
        self.active.rows(range(SAMPLES))
        now = self.in_force(), self.model.answers()
        with alone(self.model, self.before) as fresh:
            fresh.apply(self.wanted[::-1])
            fresh.rows(range(SAMPLES))
            expected = self.in_force(), self.model.answers()
            fresh.release()
        for one, other in zip(now, expected, strict=True):
            assert one.keys() == other.keys()
            different = [name for name in one if not same(one[name], other[name])]
            assert not different, different

    def in_force(self) -> dict[str, Tensor]:
        """Every weight and bias that is there now."""
        return {name: each.clone() for name, each in self.model.tree.named_parameters()}


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(7777.0), other.nan_to_num(7777.0))


@contextmanager
def alone(model: Zoo, clean: Bits) -> Iterator[ActiveSet]:
    """Another set on the same modules, for a while in which the first one is not there."""
    kept = [
        (module, dict(module._parameters), module.__dict__.pop("forward", None))
        for module in model.tree.modules()
    ]
    for path, original in clean.objects.items():
        owner, _, name = path.rpartition(".")
        model.tree.get_submodule(owner)._parameters[name] = original
    for module, parameters, _ in kept:
        for name in parameters:
            path = next((p for p, m in model.tree.named_modules() if m is module), "")
            if f"{path}.{name}".lstrip(".") not in clean.objects:
                module._parameters[name] = None
    try:
        yield ActiveSet(model)
        assert clean.untouched()
    finally:
        for module, parameters, forward in kept:
            module._parameters.update(parameters)
            if forward is not None:
                module.__dict__["forward"] = forward


class Injection:
    """Raises at the n-th call from now on, once."""

    def __init__(self, after: int) -> None:
        self.left, self.raised = after, False

    def around(self, real: Callable[..., Any], spoil: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.raised = True
                if spoil:
                    named["out"].fill_(torch.nan)
                raise RuntimeError("injected")
            return real(*args, **named)

        return call


@contextmanager
def injected(how: str, after: int) -> Iterator[Injection]:
    """A merge that breaks off in the middle, memory that is not there, a device that is gone."""
    injection = Injection(after)
    with pytest.MonkeyPatch.context() as patch:
        if how == "merge":
            patch.setattr(merge, "merged", injection.around(merge.merged, spoil=True))
        elif how == "allocation":
            patch.setattr(attach.Buffers, "take", injection.around(attach.Buffers.take))
        elif how == "device":
            patch.setattr(attach.Attached, "follow", injection.around(attach.Attached.follow))
        yield injection


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(EVENTS, min_size=2, max_size=6), st.booleans(), st.booleans())
@torch.no_grad()
def test_any_history(events: list[tuple[Any, ...]], half: bool, tight: bool) -> None:
    history = History.begin(torch.float16 if half else torch.float32, tight=tight)
    for event in events:
        history.happen(*event)
    history.release()
    history.check()
