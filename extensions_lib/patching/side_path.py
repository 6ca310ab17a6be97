"""Networks beside a weight instead of in it: y = layer(x) + up(m · down(x)).

The factors of all networks of a layer stand side by side on the rank axis, so that any number of
them costs one thin `down` and one thin `up`. Their multipliers m, one for each rank, are all that
changes where weights change over the steps; as [samples, ranks] they give each sample of a batch
networks of its own. Hu et al. 2021 (arXiv 2106.09685) train LoRA in this form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from extensions_lib.adapters.base import Adapter, LowRank
from extensions_lib.patching.forwards import Around
from extensions_lib.patching.rows import Multiplier, Rows, is_zero


def can_carry(module: nn.Module, name: str) -> bool:
    """Whether a change of this parameter can be computed beside the module: linear and conv layers.

    Forge's linear layers are no torch.nn.Linear. The projection inside torch's own attention is
    never called: its weight is taken out and used.
    """
    if name != "weight" or isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return hasattr(module, "in_features") and hasattr(module, "out_features")


class SidePath:
    """The low-rank changes of one layer, beside it from `put_in` to `take_out`.

    Args:
        module: a linear or convolution layer (`can_carry`).
        shape: of its weight, [out, in] or [out, in, kh, kw].
        adapters: each with a low-rank form or a change of the bias alone.
        biases: the change of the bias [out] at multiplier 1 of each, or None.
        rows: which sample is of which picture.

    `multipliers`, one for each adapter, may be set at any time between two forwards.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: Sequence[int],
        adapters: Sequence[Adapter],
        biases: Sequence[Tensor | None],
        rows: Rows,
    ) -> None:
        self._module, self._shape, self._rows = module, tuple(shape), rows
        self._adapters, self._biases = adapters, biases
        self._made: tuple[Tensor, Tensor] | None = None  # down and up as they were last needed
        self._shift: Tensor | None = None  # the changes of the bias [adapters, out], likewise
        self._around: Around | None = None
        self._counts = [self._factors_of(each).down.shape[0] for each in self._low_rank(adapters)]
        self.multipliers: Sequence[Multiplier] = [0.0] * len(adapters)

    def put_in(self) -> None:
        if self._around is None:
            self._around = Around(self._module, self)

    def take_out(self) -> None:
        if self._around is not None:
            self._around.remove()
            self._around = None

    @property
    def nbytes(self) -> int:
        held = [*(self._made or ()), *([] if self._shift is None else [self._shift])]
        return sum(each.nbytes for each in held)

    def __call__(self, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Any:
        """The layer's answer with the changes in it."""
        y = forward(x, *rest, **named)
        if all(is_zero(each) for each in self.multipliers):
            return y
        pairs = zip(self._adapters, self.multipliers, strict=True)
        used = [multiplier for adapter, multiplier in pairs if adapter.changes_weight]
        if not all(is_zero(each) for each in used):
            y = self._with_product(y, x.to(y.dtype), used)
        if any(each is not None for each in self._biases):
            y = self._with_shift(y)
        return y

    def _with_product(self, y: Tensor, x: Tensor, multipliers: Sequence[Multiplier]) -> Tensor:
        down, up = self._factors(y)
        first = multipliers[0]
        # One number for all ranks goes into the last product and costs nothing.
        alike = not isinstance(first, tuple) and all(each == first for each in multipliers)
        alpha = float(first) if alike and not isinstance(first, tuple) else 1.0
        vector = None if alike else self._rows.vector(multipliers, self._counts, len(x), y)
        if isinstance(self._module, nn.Conv2d):
            thin = self._module._conv_forward(x, down, None)
            if vector is not None:
                thin = thin * vector[:, :, None, None]
            return _sum(y, functional.conv2d(thin, up), alpha)
        thin = functional.linear(x, down)
        if vector is not None:
            thin = thin * vector.view(len(vector), *(1 for _ in thin.shape[1:-1]), -1)
        if torch.is_grad_enabled() or not y.is_contiguous():
            return _sum(y, functional.linear(thin, up), alpha)
        y.view(-1, y.shape[-1]).addmm_(thin.view(-1, thin.shape[-1]), up.t(), alpha=alpha)
        return y

    def _with_shift(self, y: Tensor) -> Tensor:
        if self._shift is None or self._shift.device != y.device or self._shift.dtype != y.dtype:
            with torch.inference_mode(False), torch.no_grad():
                empty = torch.zeros(self._shape[0], device=y.device, dtype=y.dtype)
                each = [empty if bias is None else bias.to(empty) for bias in self._biases]
                self._shift = torch.stack(each)
        ones = [1] * len(self._biases)
        shift = self._rows.vector(self.multipliers, ones, len(y), y) @ self._shift
        if isinstance(self._module, nn.Conv2d):
            return _sum(y, shift[:, :, None, None])
        return _sum(y, shift.view(len(shift), *(1 for _ in y.shape[1:-1]), -1))

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """down [ranks, in, *k] and up [out, ranks, *1], with the device and dtype of `like`."""
        made = self._made
        if made is not None and (made[0].device, made[0].dtype) == (like.device, like.dtype):
            return made
        # Tensors made in inference mode, from which hosts call, could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            each = [self._factors_of(adapter) for adapter in self._low_rank(self._adapters)]
            # A scale goes into its up in full precision, before that is rounded.
            ups = [(one.up if one.scale == 1 else one.up * one.scale).to(like) for one in each]
            downs = [one.down.to(like) for one in each]
            ones = [1] * (len(self._shape) - 2)
            down = (downs[0] if len(downs) == 1 else torch.cat(downs)).view(-1, *self._shape[1:])
            up = ups[0] if len(ups) == 1 else torch.cat(ups, 1)
            self._made = down, up.reshape(*up.shape, *ones)
            return self._made

    def _factors_of(self, adapter: Adapter) -> LowRank:
        factors = adapter.low_rank(self._shape)
        if factors is None:
            raise ValueError(f"{adapter.kind} has no low-rank form to compute beside a layer")
        return factors

    @staticmethod
    def _low_rank(adapters: Sequence[Adapter]) -> list[Adapter]:
        return [each for each in adapters if each.changes_weight]


def _sum(y: Tensor, change: Tensor, alpha: float = 1.0) -> Tensor:
    if torch.is_grad_enabled():
        return torch.add(y, change, alpha=alpha)
    return y.add_(change, alpha=alpha)
