"""A DoRA of output channels as one of input channels, and the other way round.

Some readers know one axis alone (AUTOMATIC1111's WebUI that of inputs, PEFT that of outputs). A
DoRA scales the rows (or columns) of W + delta to given lengths. The other axis can have the lengths
of the result exactly; its direction needs a delta that a few ranks only approximate, since scaled
rows are no scaled columns. Where the lengths hardly differ from those of W + delta, little is lost;
what is lost is said layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from extensions_lib.toolbox.resize import decomposed
from extensions_lib.toolbox.spectrum import LayerFigures, as_lora, layer_named, of_matrix
from extensions_lib.toolbox.work import ToolProblem, Watch

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.adapters import Adapter, DoRA
    from extensions_lib.files.weights import Weights

IN, OUT = "in", "out"


def on_axis(
    adapters: Mapping[str, Adapter], axis: str, base: Weights | None, watch: Watch
) -> tuple[dict[str, Adapter], list[LayerFigures]]:
    """The adapters with every DoRA along `axis`; and for those that changed, what was kept.

    `kept` is one minus the error's share of the energy of what the DoRA does to its weight.
    Raises ToolProblem without a checkpoint, where one is needed.
    """
    from extensions_lib.adapters import DoRA

    made, figures = dict(adapters), []
    turned = [(layer, each) for layer, each in adapters.items() if isinstance(each, DoRA)]
    for layer, each in watch.over(turned, len(turned)):
        if (each.magnitude.shape[0] == each.magnitude.numel()) == (axis == OUT):
            continue
        if base is None or layer not in base:
            raise ToolProblem(f"{layer}: another axis depends on the weight; name --base")
        with layer_named(layer):
            made[layer], figure = _turned(layer, each, base.weight(layer), axis)
        figures.append(figure)
    return made, figures


def _turned(layer: str, given: DoRA, weight: Tensor, axis: str) -> tuple[Adapter, LayerFigures]:
    from extensions_lib.adapters import DoRA, merged
    from extensions_lib.adapters.dora import length

    clean = weight.float()
    wanted = merged(clean, [(given, 1.0)])
    along = 0 if axis == OUT else 1
    others = [each for each in range(clean.dim()) if each != along]
    # A channel's length does not matter to its direction: the one nearest to the weight's is taken.
    dots = (wanted * clean).sum(others, keepdim=True)
    near = wanted * (dots / wanted.square().sum(others, keepdim=True).clamp_min(1e-30))
    rank = given.rank or decomposed(layer, given.inner)[0].values.numel()
    found = of_matrix((near - clean).flatten(1), rank)
    made = DoRA(as_lora(found, rank, tuple(clean.shape)), length(wanted, along))
    change = wanted - clean
    error = float((merged(clean, [(made, 1.0)]) - wanted).square().sum())
    energy = float(change.square().sum())
    kept = 1.0 - min(1.0, error / energy) if energy else 1.0
    return made, LayerFigures(layer, tuple(clean.shape), rank, kept, energy, given.rank)
