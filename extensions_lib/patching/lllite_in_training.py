"""ControlNet-LLLite in training on a live model: gradients reach its side paths.

Unlike those in force (`patching.lllite`), each picture of a batch has a condition picture of its
own, and what that says is computed anew for every answer of the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions_lib.adapters.base import AdapterError
from extensions_lib.adapters.lllite import LLLite

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from extensions_lib.models.loaded import LoadedModel


class LLLiteInTraining:
    """Side paths by canonical layer on a model's UNet, from `put_in` to `take_out`.

    Raises AdapterError, naming the layer, where one does not fit.
    """

    def __init__(self, model: LoadedModel, layers: Mapping[str, LLLite]) -> None:
        for layer, path in layers.items():
            if layer not in model.layers:
                raise AdapterError(f"{layer}: the model has no such layer")
            if problem := path.misfit(model.layers[layer].shape):
                raise AdapterError(f"{layer}: {problem}")
        self._model, self.layers = model, dict(layers)
        self._handles: list[RemovableHandle] = []
        self._told: dict[str, Tensor] = {}

    def put_in(self) -> None:
        """From now on the layers see what is added; nothing before `show`."""
        if not self._handles:
            for layer, path in self.layers.items():
                hook = self._before(layer, path)
                self._handles.append(self._model.layer(layer)[0].register_forward_pre_hook(hook))

    def take_out(self) -> None:
        """The layers as they were; no trace is left."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._told = [], {}

    def show(self, pictures: Tensor) -> None:
        """The condition pictures [B, 3, H, W] in −1…1 of the batch that the UNet is asked next.

        H and W are those of the pictures that its latents stand for.
        """
        self._told = {layer: path.told(pictures) for layer, path in self.layers.items()}

    def _before(
        self, layer: str, path: LLLite
    ) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            told = self._told.get(layer)
            if told is None:
                return None
            x, *rest = args
            dtype = torch.promote_types(x.dtype, torch.float32)
            added = path.side(x.to(dtype), told.to(dtype))
            return (x + added.to(x.dtype), *rest)

        return hook
