"""Adapters in training on a live model: its forward passes go through them, and gradients to them.

The base weights stay as they are and where they are. LoRA works beside its layer,
y = layer(x) + m · scale · up(down(x)), so that nothing of the weight's size is made or kept. For
any other kind, and where a parameter is not a plain layer's weight, the module's forward runs with
W + m · ΔW in place of the parameter.

Whatever is drawn at random here comes from torch's own generators: a loop that seeds them before
each step gets the same step again, and so does gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from extensions_lib.adapters.base import Adapter, AdapterError, LowRank
from extensions_lib.adapters.lora import LoRA
from extensions_lib.adapters.merge import merged
from extensions_lib.adapters.products import autocasts, product
from extensions_lib.patching.forwards import Standing
from extensions_lib.patching.layout import Model, Place
from extensions_lib.patching.plan import plain_shape
from extensions_lib.patching.side_path import can_carry


@dataclass(frozen=True)
class Dropouts:
    """Shares of what is left out at random in each forward pass, from 0 to 1.

    values: between down and up, each by itself. rank: whole ranks of each sample; of a kind without
    ranks, rows of its change. module: whole adapters. What stays is scaled up for the first two.
    """

    values: float = 0.0
    rank: float = 0.0
    module: float = 0.0


class InTraining(Standing):
    """`adapters` by canonical layer name on `model`, in its forward passes from `put_in` on.

    Args:
        dropouts: while `dropping` is set.
        unit: DyLoRA's block of ranks: each pass uses and trains one block, with those before it as
            they are (Valipour et al. 2022, arXiv 2210.07558). None: all ranks.

    `multiplier` scales what all of them do; 0 gives the base model, exactly. Raises AdapterError,
    naming the layer, where an adapter does not fit.
    """

    def __init__(
        self,
        model: Model,
        adapters: Mapping[str, Adapter],
        *,
        dropouts: Dropouts | None = None,
        unit: int | None = None,
    ) -> None:
        self.adapters = dict(adapters)
        self.multiplier = 1.0
        self.dropping = True
        self.dropouts, self.unit = dropouts or Dropouts(), unit
        passes: list[tuple[nn.Module, Callable[..., Any]]] = []
        super().__init__(passes)
        shared: dict[tuple[int, str], _Weight] = {}
        for canonical, adapter in self.adapters.items():
            place = _place(model, canonical, adapter)
            whole = place.rows == (0, _length(place)) and not place.transposed
            if whole and adapter.rank is not None and _carried(place, adapter):
                passes.append((place.module, _Beside(self, place, adapter)))
                continue
            at = (id(place.module), place.name)
            if at not in shared:
                shared[at] = _Weight(self, place)
                passes.append((_called(model, place.module), shared[at]))
            shared[at].parts.append((place, adapter))
        for weight in shared.values():
            weight.parts.sort(key=lambda part: part[0].rows)

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by canonical layer name and part."""
        return {
            f"{canonical}.{part}": tensor
            for canonical, adapter in self.adapters.items()
            for part, tensor in adapter.parameters().items()
        }


class _Beside:
    """A low-rank adapter beside its linear or convolution layer."""

    def __init__(self, set: InTraining, place: Place, adapter: Adapter) -> None:
        self._set, self._module, self._adapter = set, place.module, adapter
        assert place.weight is not None
        self._shape = tuple(place.weight.shape)
        made, held = self._made(), adapter.parameters().values()
        # Factors that are the trained tensors themselves need not be made in each pass.
        self._same = made if all(any(f is t for t in held) for f in made[:2]) else None

    def __call__(self, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Any:
        y = forward(x, *rest, **named)
        used = self._set
        if used.multiplier == 0 or _left_out(used):
            return y
        up, down, scale = self._factors(used)
        scale *= used.multiplier
        dtype = torch.promote_types(x.dtype, torch.float32)
        if autocasts(x.device.type):
            dtype = y.dtype
        x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
        if isinstance(self._module, nn.Conv2d):
            thin = _dropped(self._thin_of_convolution(self._module, x, down), 1, used)
            return _added(y.flatten(2), up.expand(len(y), -1, -1), thin, scale).view_as(y)
        if y.dtype == dtype and not (used.dropping and _drops(used.dropouts)):
            return _Added.apply(y, x, up, down, scale)
        thin = _dropped(functional.linear(x, down), -1, used)
        return _added(y.flatten(0, -2), thin.flatten(0, -2), up.t(), scale).view_as(y)

    def _thin_of_convolution(self, module: nn.Conv2d, x: Tensor, down: Tensor) -> Tensor:
        """[B, ranks, places]: down over the picture."""
        if self._shape[2:] == (1, 1) and module.stride == (1, 1):
            return torch.matmul(down, x.flatten(2))
        return module._conv_forward(x, down.view(-1, *self._shape[1:]), None).flatten(2)

    def _factors(self, used: InTraining) -> tuple[Tensor, Tensor, float]:
        up, down, scale = self._same or self._made()
        if used.unit is None or not used.dropping:
            return up, down, scale
        last = int(torch.randint(-(-len(down) // used.unit), ())) * used.unit
        # What was trained in narrower blocks stays as it is while a wider one learns.
        up = torch.cat([up[:, :last].detach(), up[:, last : last + used.unit]], 1)
        down = torch.cat([down[:last].detach(), down[last : last + used.unit]])
        return up, down, scale

    def _made(self) -> LowRank:
        factors = self._adapter.low_rank(self._shape)
        assert factors is not None
        return factors


class _Added(torch.autograd.Function):
    """y [..., out] + scale · x [..., in] downᵀ upᵀ: six products in all, and one node."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        thin = product(rows, down.t())
        ctx.save_for_backward(rows, thin, up, down)
        ctx.scale = scale
        done = torch.addmm(y.reshape(-1, len(up)), thin, up.t(), alpha=scale)
        return done.resize_(y.shape)  # no view: a host may go on to change it in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, thin, up, down = ctx.saved_tensors
        wide = grad.reshape(-1, len(up))
        scaled = product(wide, up, ctx.scale)
        to_up = product(wide.t(), thin, ctx.scale)
        to_down = product(scaled.t(), rows)
        to_x = product(scaled, down).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[1] else None
        return grad, to_x, to_up, to_down, None


class _Weight:
    """A module's forward with one parameter of its replaced by what the adapters make of it."""

    def __init__(self, set: InTraining, place: Place) -> None:
        self._set, self._place = set, place
        self.parts: list[tuple[Place, Adapter]] = []

    def __call__(self, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        used = self._set
        if used.multiplier == 0 or _left_out(used):
            return forward(*args, **named)
        changed = {self._place.name: self._weight()}
        if any(adapter.changes_bias for _, adapter in self.parts):
            changed[self._place.bias.name] = self._bias()
        own = self._place.module._parameters
        kept = {name: own[name] for name in changed}
        try:
            own.update(changed)  # type: ignore[arg-type]  # a tensor that leads to the adapters
            return forward(*args, **named)
        finally:
            own.update(kept)

    def _weight(self) -> Tensor:
        weight, used = self._place.weight, self._set
        assert weight is not None
        base = weight.detach().t() if self._place.transposed else weight.detach()
        pieces, done = [], 0
        for place, adapter in self.parts:
            start, stop = place.rows
            pieces += [base[done:start]] if done < start else []
            own = base[start:stop]
            if adapter.changes_weight:
                changed = merged(own, [(adapter, used.multiplier)], in_order=True)
                own = _some_rows(own, changed, used)
            pieces.append(own)
            done = stop
        pieces += [base[done:]] if done < len(base) else []
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.t() if self._place.transposed else whole

    def _bias(self) -> Tensor:
        bias, weight = self._place.bias.weight, self._place.weight
        assert weight is not None
        whole = weight.new_zeros(_length(self._place)) if bias is None else bias.detach()
        for place, adapter in self.parts:
            own = whole[slice(*place.rows)]
            change = adapter.bias_delta(None if bias is None else own)
            if change is not None:
                start, stop = place.rows
                changed = (own + self._set.multiplier * change).to(whole.dtype)
                whole = torch.cat([whole[:start], changed, whole[stop:]])
        return whole


def _added(y: Tensor, one: Tensor, other: Tensor, scale: float) -> Tensor:
    """y + scale · one · other; in one operation, and one backward, where the dtypes allow it."""
    if y.dtype != one.dtype:
        return y + (scale * torch.matmul(one, other)).to(y.dtype)
    product = torch.addmm if y.dim() == 2 else torch.baddbmm
    return product(y, one, other, alpha=scale)


def _place(model: Model, canonical: str, adapter: Adapter) -> Place:
    try:
        place = Place.find(model, canonical)
    except KeyError:
        raise AdapterError(f"{canonical}: the model has no such layer") from None
    shape = plain_shape(place.weight)
    if isinstance(shape, str):
        raise AdapterError(f"{canonical}: {shape}")
    shape = shape[::-1] if place.transposed else shape
    place = place.among(shape[0])
    start, stop = place.rows
    if problem := adapter.misfit((stop - start, *shape[1:])):
        raise AdapterError(f"{canonical}: {problem}")
    return place


def _called(model: Model, module: nn.Module) -> nn.Module:
    """The module whose forward uses this one's parameters: itself, or torch's own attention."""
    if not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return module
    others = (model.layer(canonical)[0] for canonical in model.layers)
    return next((each for each in others if getattr(each, "out_proj", None) is module), module)


def _length(place: Place) -> int:
    weight = place.weight
    assert weight is not None
    return weight.shape[1] if place.transposed else weight.shape[0]


def _carried(place: Place, adapter: Adapter) -> bool:
    """Whether it goes beside its layer. A product that would have to be made first does not pay."""
    weight = place.weight
    assert weight is not None
    plain = isinstance(adapter, LoRA) and not adapter.changes_bias
    return (
        plain
        and can_carry(place.module, place.name)
        and adapter.inputs_of(weight.shape) == weight.shape[1]
    )


def _left_out(used: InTraining) -> bool:
    """Whether this pass does without an adapter."""
    share = used.dropouts.module
    return used.dropping and share > 0 and float(torch.rand(())) < share


def _drops(shares: Dropouts) -> bool:
    """Whether values or ranks are left out."""
    return shares.values > 0 or shares.rank > 0


def _dropped(thin: Tensor, ranks: int, used: InTraining) -> Tensor:
    """The values between down and up, some left out; `ranks` is the dimension of the ranks."""
    if not used.dropping:
        return thin
    thin = functional.dropout(thin, used.dropouts.values)
    share = used.dropouts.rank
    if share > 0:
        size = [1] * thin.dim()
        size[0], size[ranks] = thin.shape[0], thin.shape[ranks]
        kept = torch.rand(size, device=thin.device) >= share
        thin = thin * (kept / (1 - share)).to(thin.dtype)
    return thin


def _some_rows(base: Tensor, changed: Tensor, used: InTraining) -> Tensor:
    """The changed weight with some rows as they were, for kinds that are not computed by ranks."""
    share = used.dropouts.rank
    if not used.dropping or share == 0:
        return changed
    kept = (torch.rand(len(base), device=base.device) >= share).to(changed.dtype)
    kept = kept.view(-1, *(1 for _ in base.shape[1:])) / (1 - share)
    return base + (changed - base) * kept
