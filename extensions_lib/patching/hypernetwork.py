"""Hypernetworks on a loaded model: x + weight · MLP(x) on the context of every attention layer.

They stand before `to_k` and `to_v` of self- and cross-attention, chosen by the context's width, as
forward pre-hooks that are there only while a hypernetwork is in force. Several follow one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from extensions_lib.files.hypernetworks import Activation, Dropout, Hypernetwork, Linear, Mlp

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from extensions_lib.models.loaded import LoadedModel

Weighted = tuple[Hypernetwork, float]

_LOWER, _UPPER = 1 / 8, 1 / 3  # of RReLU's random slope; without training it takes their mean


def _rrelu(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, (_LOWER + _UPPER) / 2)


# torch's modules without a dimension take the first one of a [batch, tokens, width]: so the WebUI
# normalises over the batch, and so do we.
_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu, "leakyrelu": functional.leaky_relu, "elu": functional.elu,
    "swish": functional.hardswish, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "hardswish": functional.hardswish, "hardtanh": functional.hardtanh,
    "hardsigmoid": functional.hardsigmoid, "hardshrink": functional.hardshrink,
    "relu6": functional.relu6, "rrelu": _rrelu, "silu": functional.silu, "mish": functional.mish,
    "celu": functional.celu, "selu": functional.selu, "gelu": functional.gelu,
    "logsigmoid": functional.logsigmoid, "softplus": functional.softplus,
    "softshrink": functional.softshrink, "softsign": functional.softsign,
    "tanhshrink": functional.tanhshrink,
    "softmax": lambda x: functional.softmax(x, dim=0),
    "softmin": lambda x: functional.softmin(x, dim=0),
    "logsoftmax": lambda x: functional.log_softmax(x, dim=0),
}  # fmt: skip


def forward(mlp: Mlp, x: Tensor) -> Tensor:
    """MLP(x) for x [..., width], in the dtype and on the device of x, which the layers must share.

    Differentiable in x and the layers; dropout leaves out where gradients are kept.
    """
    for layer in mlp:
        if isinstance(layer, Linear):
            x = functional.linear(x, layer.weight, layer.bias)
        elif isinstance(layer, Activation):
            x = _activated(layer, x)
        elif isinstance(layer, Dropout):
            x = functional.dropout(x, layer.share, training=torch.is_grad_enabled())
        else:
            x = functional.layer_norm(x, layer.weight.shape, layer.weight, layer.bias)
    return x


def _activated(layer: Activation, x: Tensor) -> Tensor:
    if layer.slope is not None:
        return functional.prelu(x, layer.slope)
    return _FUNCTIONS[layer.name](x)


def changed(mlp: Mlp, weight: float, x: Tensor) -> Tensor:
    """x + weight · MLP(x), computed in float32 and given back in the dtype of x, as in the WebUI.

    x: [batch, tokens, width].
    """
    wide = x.float()
    return (wide + forward(mlp, wide) * weight).to(x.dtype)


def moved(mlp: Mlp, device: torch.device | str) -> Mlp:
    """The layers on a device; the same tensors where they are there already."""
    layers: list[Any] = []
    for layer in mlp:
        if isinstance(layer, Activation):
            slope = None if layer.slope is None else layer.slope.to(device)
            layers.append(Activation(layer.name, slope))
        elif isinstance(layer, Dropout):
            layers.append(layer)
        else:
            layers.append(type(layer)(layer.weight.to(device), layer.bias.to(device)))
    return tuple(layers)


class Hypernetworks:
    """The hypernetworks in force on one model's UNet; none at first."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._wanted: list[Weighted] = []

    def apply(self, wanted: Sequence[Weighted]) -> list[str]:
        """Makes exactly these active, in this order; returns sentences on those without effect.

        Those of weight 0 change nothing and are left out.
        """
        wanted = [(each, weight) for each, weight in wanted if weight]
        there = self.widths()
        messages = [
            f"{each.name}: made for contexts {_listed(each.widths)} wide; this model's are"
            f" {_listed(sorted(there))}. It has no effect."
            for each, _ in wanted
            if not there.intersection(each.widths)
        ]
        if not _same(wanted, self._wanted):
            self.clear()
            try:
                self._hook(wanted)
            except BaseException:
                self.clear()
                raise
            self._wanted = wanted
        return messages

    def clear(self) -> None:
        """Takes them all off; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._wanted = [], []

    def _hook(self, wanted: Sequence[Weighted]) -> None:
        chains: dict[tuple[int, int], list[tuple[Mlp, float]]] = {}
        for name, which in self._entrances():
            module, width = self._entrance(name)
            if (width, which) not in chains:
                chains[width, which] = [
                    (moved(each.mlps[width][which], self._model.device), weight)
                    for each, weight in wanted
                    if width in each.mlps
                ]
            chain = chains[width, which]
            if chain:
                self._handles.append(module.register_forward_pre_hook(_before(chain)))

    def _entrances(self) -> list[tuple[str, int]]:
        """Every layer that makes keys (0) or values (1) of a context, by canonical name."""
        return [
            (name, ending == "to_v")
            for name in self._model.layers
            for ending in ("to_k", "to_v")
            if name.startswith("unet.") and name.endswith((f"attn1.{ending}", f"attn2.{ending}"))
        ]

    def _entrance(self, name: str) -> tuple[nn.Module, int]:
        module = self._model.layer(name)[0]
        return module, self._model.layers[name].shape[1]

    def widths(self) -> set[int]:
        """How wide the contexts of the model's attention layers are."""
        return {self._entrance(name)[1] for name, _ in self._entrances()}


def _same(these: Sequence[Weighted], those: Sequence[Weighted]) -> bool:
    return len(these) == len(those) and all(
        one is other and weight == former
        for (one, weight), (other, former) in zip(these, those, strict=True)
    )


def _before(chain: Sequence[tuple[Mlp, float]]) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    there = {chain[0][0][0].weight.device: chain}  # type: ignore[union-attr]

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        context, *rest = args
        if context.device not in there:  # a host has moved the model since
            there[context.device] = [(moved(mlp, context.device), w) for mlp, w in chain]
        for mlp, weight in there[context.device]:
            context = changed(mlp, weight, context)
        return (context, *rest)

    return hook


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths)) or "none"
