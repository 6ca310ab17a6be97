"""Something around the forward of a host's module, and the module's own forward again afterwards.

    around = Around(module, function)   # function(forward, *args, **kwargs) now answers
    around.remove()                     # and no trace of it is left

Networks beside a weight (`side_path`) and weights for groups of samples (`by_group`) work by it,
and it serves whoever else has to stand around chosen layers. The forward is replaced on the
instance: classes, which WebUIs patch themselves, stay as they are, and so does torch's fast path
for modules without hooks. Pre-hooks still run first, so what changes a layer's input may be one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn


class Around:
    """`function(forward, *args, **kwargs)` answers for `module` until `remove` is called.

    `forward` is what would have answered without it; a later one stands around the earlier ones.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        chain = vars(module).get("forward")
        if not isinstance(chain, _Chain):
            chain = _Chain(module)
            vars(module)["forward"] = chain
        self._module, self._chain, self._function = module, chain, function
        chain.put(function)

    def remove(self) -> None:
        """Takes it out again; once is enough, more does no harm.

        Where somebody else has meanwhile put a forward of theirs around ours, what is left of ours
        hands everything on.
        """
        self._chain.drop(self._function)
        if not len(self._chain) and vars(self._module).get("forward") is self._chain:
            self._chain.give_back(self._module)


class Standing:
    """Functions around the forwards of several modules, from `put_in` to `take_out`."""

    def __init__(self, passes: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> None:
        self._passes = passes
        self._around: list[Around] = []

    def put_in(self) -> None:
        """From now on; once is enough."""
        if not self._around:
            for module, function in self._passes:
                self._around.append(Around(module, function))

    def take_out(self) -> None:
        """The modules' own forward passes again; no trace is left."""
        for around in reversed(self._around):
            around.remove()
        self._around = []


class _Chain:
    """Stands in a module for its forward; a copy of the module gets a copy that serves that one."""

    def __init__(self, module: nn.Module) -> None:
        self._own = module.forward
        self._on_instance = "forward" in vars(module)
        self._functions: list[Callable[..., Any]] = []
        self._whole: Callable[..., Any] = self._own

    def __len__(self) -> int:
        return len(self._functions)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._whole(*args, **kwargs)

    def put(self, function: Callable[..., Any]) -> None:
        self._functions.append(function)
        self._build()

    def drop(self, function: Callable[..., Any]) -> None:
        self._functions = [each for each in self._functions if each is not function]
        self._build()

    def give_back(self, module: nn.Module) -> None:
        if self._on_instance:
            vars(module)["forward"] = self._own
        else:
            del vars(module)["forward"]

    def _build(self) -> None:
        self._whole = self._own
        for function in self._functions:
            self._whole = partial(function, self._whole)
