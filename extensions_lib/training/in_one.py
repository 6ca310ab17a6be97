"""The tensors of a parameter group as one parameter, for optimizers that treat each number alone.

A network has hundreds of small tensors; to ask for an operation on each of them takes longer than
to do it. Here they become views of one memory, and an optimizer such as AdamW updates that in one
go: the same numbers come out. What is saved of the optimizer is as if it had the tensors
themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.training import ranks

# Numbers from one tensor's start to the next are a multiple of this, so that each lies as memory of
# its own would; and how many numbers are worth it at most (256 MB), since all exist twice for a
# moment.
_UNIT, _MOST = 64, 1 << 26

Held = Mapping[str, Any]  # what an optimizer knows of a parameter


class InOne:
    """`groups` are torch's parameter groups of `given`; what can be is one parameter in them.

    elementwise: whether the optimizer treats each number by itself.
    """

    def __init__(self, given: Sequence[Mapping[str, Any]], elementwise: bool) -> None:
        self.trained: list[Tensor] = [each for group in given for each in group["params"]]
        self._joints = [
            _Joint(group["params"]) if elementwise and _joins(group["params"]) else None
            for group in given
        ]
        self.groups = [
            {**group, "params": [joint.whole] if joint else list(group["params"])}
            for group, joint in zip(given, self._joints, strict=True)
        ]

    def gather(self) -> list[Tensor]:
        """Hands the gradients on to what the optimizer has; those parameters."""
        if ranks.rank().count > 1:  # where one process has a gradient, all of them have
            for each in self.trained:
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        for joint in filter(None, self._joints):
            joint.gather()
        return [each for group in self.groups for each in group["params"]]

    def step(self, step: Any, optimizer: torch.optim.Optimizer) -> None:
        """Takes the optimizer's `step`; what had no gradient stays as it was."""
        kept = [joint.kept(optimizer) for joint in filter(None, self._joints)]
        step()
        with torch.no_grad():
            for part, before in (pair for pairs in kept for pair in pairs):
                part.copy_(before)

    def forget(self) -> None:
        """No gradients any more."""
        for group in self.groups:
            for each in group["params"]:
                each.grad = None
        for each in self.trained:
            each.grad = None

    def apart(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's state as it would be if it had the tensors themselves."""
        return self._with_others(state, lambda joint, held: joint.apart(held[0]))

    def joined(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The reverse of `apart`."""
        return self._with_others(state, lambda joint, held: [joint.joined(held)])

    def _with_others(
        self,
        state: Mapping[str, Any],
        change: Callable[[_Joint, Sequence[Held | None]], Sequence[Held | None]],
    ) -> dict[str, Any]:
        """A state with what is held of each parameter changed, those in one alone, and numbered."""
        found: dict[int, Held] = {}
        groups, number = [], 0
        for group, joint in zip(state["param_groups"], self._joints, strict=True):
            held = [state["state"].get(index) for index in group["params"]]
            if joint is not None:
                held = list(change(joint, held))
            numbers = list(range(number, number + len(held)))
            found |= {n: each for n, each in zip(numbers, held, strict=True) if each is not None}
            groups.append({**group, "params": numbers})
            number += len(held)
        return {"state": found, "param_groups": groups}


def _joins(tensors: Sequence[Tensor]) -> bool:
    """Whether they can be one parameter, and that is worth it."""
    sorts = {(each.device, each.dtype) for each in tensors}
    plain = all(type(each) in (Tensor, nn.Parameter) and each.is_leaf for each in tensors)
    size = sum(each.numel() for each in tensors)
    return len(tensors) > 1 and len(sorts) == 1 and plain and 0 < size <= _MOST


class _Joint:
    """Tensors that are views of one parameter, `whole`, from now on."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._sizes = [-(-each.numel() // _UNIT) * _UNIT for each in tensors]
        self.whole = nn.Parameter(tensors[0].detach().new_zeros(sum(self._sizes)))
        for each, part in zip(self._tensors, self._parts(self.whole.detach()), strict=True):
            part.copy_(each.detach())
            each.data = part
        self._missing: list[int] = []
        self._grad: Tensor | None = None
        self._grads: list[Tensor] = []

    def _parts(self, whole: Tensor) -> Iterator[Tensor]:
        """What each tensor has of something of the size of `whole`, in its shape."""
        for each, part in zip(self._tensors, whole.split(self._sizes), strict=True):
            yield part[: each.numel()].view(each.shape)

    def gather(self) -> None:
        """`whole` gets the gradients of all; 0 where there is none."""
        if self._grad is None:
            self._grad = torch.zeros_like(self.whole)
            self._grads = list(self._parts(self._grad))
        self._missing = [n for n, each in enumerate(self._tensors) if each.grad is None]
        if self._missing:
            self._grad.zero_()
        pairs = [
            (into, each.grad)
            for into, each in zip(self._grads, self._tensors, strict=True)
            if each.grad is not None
        ]
        if pairs:
            torch._foreach_copy_([into for into, _ in pairs], [grad for _, grad in pairs])
        for each in self._tensors:
            each.grad = None
        self.whole.grad = self._grad

    def kept(self, optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
        """Where tensors without a gradient lie, with the optimizer's numbers on them, and what."""
        if not self._missing:
            return []
        wholes = [self.whole.detach(), *self._numbers(optimizer.state.get(self.whole) or {})]
        found = []
        for whole in wholes:
            parts = list(self._parts(whole))
            found += [(parts[number], parts[number].clone()) for number in self._missing]
        return found

    def _numbers(self, state: Mapping[str, Any]) -> list[Tensor]:
        return [
            each
            for each in state.values()
            if isinstance(each, Tensor) and each.shape == self.whole.shape
        ]

    def apart(self, state: Held | None) -> list[Held | None]:
        """The state of each tensor."""
        if state is None:
            return [None] * len(self._tensors)
        numbers = {id(each) for each in self._numbers(state)}
        found: list[dict[str, Any]] = [{} for _ in self._tensors]
        for name, value in state.items():
            values: list[Any] = [value] * len(found)
            if id(value) in numbers:
                values = [part.clone() for part in self._parts(value)]
            elif isinstance(value, Tensor):  # a count, which each then keeps for itself
                values = [value.clone() for _ in found]
            for each, own in zip(found, values, strict=True):
                each[name] = own
        return list(found)

    def joined(self, states: Sequence[Held | None]) -> Held | None:
        """The reverse of `apart`."""
        known = [(number, each) for number, each in enumerate(states) if each]
        if not known:
            return None
        found: dict[str, Any] = {}
        for name, value in known[0][1].items():
            shape = self._tensors[known[0][0]].shape
            if name == "step" or not isinstance(value, Tensor) or value.shape != shape:
                found[name] = value
                continue
            found[name] = value.new_zeros(self.whole.shape)
            parts = list(self._parts(found[name]))
            for number, each in known:
                parts[number].copy_(each[name])
        return found
