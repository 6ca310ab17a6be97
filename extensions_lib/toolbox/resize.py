"""A network with fewer ranks, or as a plain LoRA: by its singular values, or the first ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.options import option
from extensions_lib.toolbox.spectrum import (
    Decomposed,
    LayerFigures,
    Ranks,
    curve,
    fitted,
    layer_named,
    of_factors,
    of_matrix,
)
from extensions_lib.toolbox.weighted import opened_base, shape_of, weight_of
from extensions_lib.toolbox.work import (
    BESIDE,
    QUIET,
    Output,
    ToolProblem,
    Watch,
    Written,
    destination,
    factor_precision,
    misunderstood,
    torch_precision,
)

if TYPE_CHECKING:
    from extensions_lib.adapters import Adapter
    from extensions_lib.files.networks import Network
    from extensions_lib.files.weights import Weights


@dataclass(frozen=True)
class Resizing(Ranks):
    """How many ranks stay."""

    base: str = option("", "checkpoint, for kinds whose change depends on the weight (DoRA, OFT …)")
    first: bool = option(False, "keep the first ranks as they are, as a DyLoRA is cut; no rule")


@dataclass
class Resized(Written):
    """The file, and what it keeps of each layer."""

    layers: list[LayerFigures] = field(default_factory=list)
    whole: int = 0  # layers without ranks (norms, biases), which stay as they are


def resize(
    path: Path,
    how: Resizing = Resizing(),
    order: Output = BESIDE,
    watch: Watch = QUIET,
) -> Resized:
    """Writes a network with the ranks that `how` asks for; every kind becomes LoRA.

    Raises FileProblem, ToolProblem, Stopped; the input stays as it is.
    """
    from extensions_lib.files.networks import read_network, write_network

    how.check()
    ending = f"first{how.rank}" if how.first else f"r{how.rank}" if how.rule == "rank" else how.rule
    result = Resized(destination(order, [path], ending, ".safetensors"))
    with opened_base(how.base) as base:
        network = read_network(path, structure=base.structure if base is not None else None)
        result.left_out += misunderstood(network)
        result.left_out += [f"the embedding {name!r} in it" for name in network.embeddings]
        if not network.adapters:
            raise ToolProblem(f"{path}: holds embeddings alone, which have no ranks")
        made: dict[str, Adapter] = {}
        for layer, adapter in watch.over(network.adapters.items(), len(network.adapters)):
            made[layer] = _resized(layer, adapter, how, base, result)
    dtype = torch_precision(order.precision) or factor_precision(network)
    metadata = _metadata(network, how)
    write_network(result.path, made, metadata, dtype=dtype, family=network.family, fresh=True)
    return result


def _resized(
    layer: str, adapter: Adapter, how: Resizing, base: Weights | None, result: Resized
) -> Adapter:
    if not adapter.changes_weight or len(_shape(layer, adapter, base)) < 2:
        result.whole += 1
        return adapter
    with layer_named(layer):
        if how.first:
            return _cut(layer, adapter, how, base, result)
        found, shape = decomposed(layer, adapter, base)
        lora, figures = fitted(layer, found, shape, how, adapter.rank)
        result.layers.append(figures)
        bias = adapter.bias_delta(base.bias(layer) if base is not None and layer in base else None)
    if bias is None:
        return lora
    from extensions_lib.adapters import Biased

    return Biased(lora, bias)


def _cut(
    layer: str, adapter: Adapter, how: Resizing, base: Weights | None, result: Resized
) -> Adapter:
    """The first ranks as they stand; of another kind than LoRA there are none to cut."""
    from extensions_lib.adapters import Biased, DoRA, LoRA, Sparse

    inner = adapter
    while isinstance(inner, (Biased, DoRA, Sparse)):
        inner = inner.inner
    if not isinstance(inner, LoRA):
        raise ToolProblem(f"{layer}: is {inner.kind}, whose ranks have no order; leave out --first")
    shape = _shape(layer, adapter, base)
    cut = adapter.first_ranks(min(how.most(shape), inner.rank))
    factors = inner.low_rank(shape)
    whole = of_factors(factors)
    part = inner.first_ranks(min(how.most(shape), inner.rank)).low_rank(shape)
    energy = of_factors(part).energy
    share = min(1.0, energy / whole.energy) if whole.energy else 1.0
    figures = LayerFigures(layer, shape, len(part.down), share, energy, inner.rank, curve(whole))
    result.layers.append(figures)
    return cut


def decomposed(
    layer: str, adapter: Adapter, base: Weights | None = None
) -> tuple[Decomposed, tuple[int, ...]]:
    """The singular values of what an adapter does to its layer's weight, and the weight's shape.

    Raises ToolProblem where the checkpoint is needed for it, or its numbers are none.
    """
    import torch

    shape = _shape(layer, adapter, base)
    with layer_named(layer):
        factors = adapter.low_rank(shape)
        if factors is not None and len(factors.down) <= min(len(factors.up), factors.down.shape[1]):
            found = of_factors(factors)
        else:
            change = adapter.delta(weight_of(layer, [(adapter, 1.0)], shape, base))
            found = of_matrix(change.flatten(1))
        if not bool(torch.isfinite(found.values).all()):
            raise torch.linalg.LinAlgError
    return found, shape


def _shape(layer: str, adapter: Adapter, base: Weights | None) -> tuple[int, ...]:
    return shape_of(layer, [(adapter, 1.0)], base)


def spectrum(path: Path, base: str = "", watch: Watch = QUIET) -> list[LayerFigures]:
    """The curve of energy by rank of every layer, for a plot; nothing is written."""
    from extensions_lib.files.networks import read_network

    figures = []
    with opened_base(base) as opened:
        network = read_network(path, structure=opened.structure if opened is not None else None)
        for layer, adapter in watch.over(network.adapters.items(), len(network.adapters)):
            if adapter.changes_weight and len(_shape(layer, adapter, opened)) > 1:
                found, shape = decomposed(layer, adapter, opened)
                rank = adapter.rank or len(found.values)
                figures.append(
                    LayerFigures(layer, shape, rank, 1.0, found.energy, rank, curve(found))
                )
    return figures


def _metadata(network: Network, how: Resizing) -> Mapping[str, str]:
    """The input's, with what is no longer true of it put right."""
    kept = {
        key: text
        for key, text in network.metadata.items()
        if not key.startswith(("sshs_", "modelspec.hash", "lora_adapter_metadata"))
    }
    said = "first" if how.first else how.rule
    target = "" if how.target is None else f" {how.target:g}"
    network_dim = str(how.rank) if how.rule == "rank" else "Dynamic"
    return {
        **kept,
        "ss_network_dim": network_dim,
        "ss_network_alpha": network_dim,
        "ss_network_module": "networks.lora",
        "crucible_resized": f"{said}{target}, at most {how.rank} ranks, from {network.path.stem}",
    }
