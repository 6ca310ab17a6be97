"""The plain layers of a model computed by `adapters.products`, which a CPU does faster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from extensions_lib.adapters.products import convolution, linear
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.patching.forwards import Standing

# Where classes come from whose forward is known to be that of a linear or convolution layer.
_KNOWN = ("torch.nn.modules.", "backend.operations")
_SMALL = 1 << 16  # a weight of fewer numbers is not worth the question, in each pass


class FastPasses(Standing):
    """Stands around the linear and convolution layers of a model.

    Before anything else is put around them: what their own forward would have answered is not
    asked. Nothing is done where the model's layers do not lie on the CPU.
    """

    def __init__(self, model: LoadedModel) -> None:
        parts = (model.unet, *model.text_encoders) if model.device.type == "cpu" else ()
        layers = ((each, _pass_of(each)) for part in parts for each in part.modules())
        super().__init__([(module, function) for module, function in layers if function])


def _pass_of(module: nn.Module) -> Callable[..., Any] | None:
    """How it is computed; None where it is no layer of which that is known."""
    weight = _weight(module)
    if weight is None or weight.numel() < _SMALL:
        return None
    if not type(module).__module__.startswith(_KNOWN):
        return None
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
        return partial(_convolved, module) if plain and type(module.padding) is tuple else None
    if type(module).__name__ == "Linear" and getattr(module, "scale_weight", None) is None:
        return partial(_mapped, module)
    return None


def _weight(module: nn.Module) -> Tensor | None:
    return module._parameters.get("weight")


def _mapped(module: nn.Module, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    weight = _weight(module)
    y = None if weight is None else linear(x, weight, module._parameters.get("bias"))
    return forward(x) if y is None else y


def _convolved(module: Any, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    weight, y = _weight(module), None
    if weight is not None:
        bias = module._parameters.get("bias")
        y = convolution(x, weight, bias, module.stride, module.padding)
    return forward(x) if y is None else y
