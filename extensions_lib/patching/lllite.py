"""ControlNet-LLLite on a loaded model: what a condition picture adds to the inputs of its layers.

A forward pre-hook stands before each touched layer, and one before the UNet, which tells how large
the sample is: so the picture is brought to the size of whatever is being sampled, be it a first
pass, a hires pass or a tile. Weights are never touched; taking the hooks off is all there is to
undo.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions_lib.adapters.lllite import LATENT, LLLite

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from extensions_lib.files.lllite import ControlLLLite
    from extensions_lib.models.loaded import LoadedModel

Picture = Callable[[int, int], Tensor]
"""(width, height) in pixels -> the condition picture so large, [1, 3, height, width] in -1…1."""


def mostly(unfit: Collection[str], wanted: ControlLLLite) -> bool:
    """Whether half of the layers or more do not fit: in another model a few do by chance."""
    return 2 * len(unfit) >= len(wanted.layers)


class LLLites:
    """Those in force on one model's UNet; none at first.

    `unmet` are the layers that were given an input of no known place in the picture, as other
    extensions make them (token merging, tiles): they were left alone.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._weights: list[float] = []
        self._picture: Picture | None = None
        self._side: tuple[int, int] | None = None  # width and height of the sample, in pixels
        self._ready: dict[tuple[int, str], tuple[LLLite, Tensor]] = {}
        self.unmet: set[str] = set()

    def apply(self, wanted: Sequence[ControlLLLite], picture: Picture) -> list[list[str]]:
        """Makes exactly these active, at weight 0; returns for each the layers that do not fit.

        One of which half or more do not fit was made for another model: it is left out as a whole.
        Several on one layer follow one another: each sees what those before it added.
        """
        self.clear()
        unfit: list[list[str]] = []
        try:
            for number, each in enumerate(wanted):
                unfit.append(self._attach(number, each))
            if self._handles:
                hook = self._model.unet.register_forward_pre_hook(self._begin, with_kwargs=True)
                self._handles.append(hook)
        except BaseException:
            self.clear()
            raise
        self._picture, self._weights = picture, [0.0] * len(wanted)
        return unfit

    def weigh(self, weights: Sequence[float]) -> None:
        """Sets the weight of each, in the order of `apply`; may be called between steps."""
        self._weights = list(weights)

    def clear(self) -> None:
        """Takes them all off; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._weights, self._ready = [], [], {}
        self._picture = self._side = None
        self.unmet = set()

    def _attach(self, number: int, wanted: ControlLLLite) -> list[str]:
        there = self._model.layers
        unfit = {}
        for layer, path in wanted.layers.items():
            problem = "this model has no such layer"
            if layer not in there or (problem := path.misfit(there[layer].shape) or ""):
                unfit[layer] = f"{layer}: {problem}"
        if not mostly(unfit, wanted):
            for layer in wanted.layers.keys() - unfit.keys():
                hook = self._before(number, layer, wanted.layers[layer])
                module = self._model.layer(layer)[0]
                self._handles.append(module.register_forward_pre_hook(hook))
        return list(unfit.values())

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The UNet is about to answer for a sample [batch, channels, h, w]."""
        sample = args[0] if args else kwargs["sample" if "sample" in kwargs else "x"]
        side = (sample.shape[-1] * LATENT, sample.shape[-2] * LATENT)
        if side != self._side:
            self._side, self._ready = side, {}

    def _before(
        self, number: int, layer: str, path: LLLite
    ) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            weight = self._weights[number]
            if not weight:
                return None
            x, *rest = args
            moved, told = self._prepared((number, layer), path, x)
            if told.shape[1] != (x.shape[1] if x.dim() == 3 else x.shape[2:].numel()):
                self.unmet.add(layer)
                return None
            added = moved.side(x, told)
            return (torch.add(x, added.to(x.dtype), alpha=weight), *rest)

        return hook

    def _prepared(self, at: tuple[int, str], path: LLLite, x: Tensor) -> tuple[LLLite, Tensor]:
        """The side path where x is and as x is, and what the picture tells it."""
        known = self._ready.get(at)
        if known is None or (known[1].device, known[1].dtype) != (x.device, x.dtype):
            if self._picture is None or self._side is None:
                raise RuntimeError("a layer of the UNet is asked without the UNet")
            moved = path.to(x.device)
            told = moved.told(self._picture(*self._side).to(x.device)).to(x.dtype)
            known = self._ready[at] = moved.to(x.device, x.dtype), told
        return known
