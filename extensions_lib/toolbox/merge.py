"""Several networks as one.

Plain LoRAs stand side by side on the rank axis, which is exact whatever their ranks. Every other
kind, and a target rank, goes through the sum of the changes and its singular values; what that
keeps is said for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from extensions_lib.options import option
from extensions_lib.toolbox.spectrum import (
    LayerFigures,
    Ranks,
    fitted,
    layer_named,
    of_factors,
    of_matrix,
)
from extensions_lib.toolbox.weighted import (
    Stacks,
    Weighted,
    as_words,
    opened_base,
    shape_of,
    stacked,
    weight_of,
)
from extensions_lib.toolbox.work import (
    BESIDE,
    QUIET,
    Output,
    ToolProblem,
    Watch,
    Written,
    common_precision,
    destination,
    factor_precision,
    misunderstood,
    torch_precision,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from extensions_lib.adapters import Adapter
    from extensions_lib.adapters.base import LowRank
    from extensions_lib.files.networks import Network
    from extensions_lib.files.weights import Weights

Stack = Sequence[tuple["Adapter", float]]
_NO_RANK = 64  # ranks that a layer gets from a kind that has none


@dataclass(frozen=True)
class Merging:
    """How networks become one."""

    rank: int | None = option(
        None, "ranks of each layer; none: as many as all have together", low=1, high=4096
    )
    base: str = option("", "checkpoint, for kinds whose change depends on the weight (DoRA, OFT …)")


@dataclass
class Merged(Written):
    """The file, and of each layer how much of the changes it keeps."""

    layers: list[LayerFigures] = field(default_factory=list)
    exact: int = 0  # layers that are kept whole, without a decomposition


def merge(
    wanted: Sequence[Weighted],
    how: Merging = Merging(),
    order: Output = BESIDE,
    watch: Watch = QUIET,
) -> Merged:
    """Merges networks and writes the one that does what they do together.

    Raises FileProblem, ToolProblem, Stopped; the inputs stay as they are.
    """
    from extensions_lib.files.networks import read_network, write_network

    if not wanted:
        raise ToolProblem("there is nothing to merge; name network files")
    path = destination(order, [each.path for each in wanted], "merged", ".safetensors")
    result = Merged(path)
    with opened_base(how.base) as base:
        structure = base.structure if base is not None else None
        networks = [read_network(each.path, structure=structure) for each in wanted]
        for network in networks:
            result.left_out += misunderstood(network)
        stacks = stacked(wanted, networks, structure)
        adapters: dict[str, Adapter] = {}
        for layer, stack in watch.over(stacks.layers.items(), len(stacks.layers)):
            adapters[layer] = _merged_layer(layer, stack, how, base, result)
    _embeddings_stay_behind(networks, result)
    dtype = torch_precision(order.precision) or _precision(networks)
    metadata = _metadata(wanted, stacks)
    write_network(path, adapters, metadata, dtype=dtype, family=stacks.family, fresh=True)
    return result


def _merged_layer(
    layer: str, stack: Stack, how: Merging, base: Weights | None, result: Merged
) -> Adapter:
    """One adapter with the changes of all; says in the result what of them it keeps."""
    shape = shape_of(layer, stack, base)
    with layer_named(layer):
        made = _one_weight(layer, stack, shape, how, base, result)
        return _with_bias(made, _bias(layer, stack, base))


def _one_weight(
    layer: str, stack: Stack, shape: tuple, how: Merging, base: Weights | None, result: Merged
) -> Adapter | None:
    """What changes the weight; None where nothing does."""
    from extensions_lib.adapters import Full, Norm

    stack = [each for each in stack if each[0].changes_weight]
    if not stack:
        return None
    factors = side_by_side(stack, shape)
    if len(shape) < 2 or (factors is None and all(isinstance(a, Full) for a, _ in stack)):
        result.exact += 1
        kind = Norm if all(isinstance(adapter, Norm) for adapter, _ in stack) else Full
        return kind(_sum_of(layer, stack, shape, base))
    asked = how.rank or sum(adapter.rank or _NO_RANK for adapter, _ in stack)
    ranks = Ranks(min(asked, 4096))
    if factors is not None:
        together = len(factors.down)
        if how.rank is None or together <= ranks.most(shape):
            result.exact += 1
            return _as_it_is(layer, factors, shape, result)
        found = of_factors(factors)
        lora, figures = fitted(layer, found, shape, ranks, together)
    else:
        change = _sum_of(layer, stack, shape, base)
        lora, figures = fitted(layer, of_matrix(change.flatten(1)), shape, ranks)
    result.layers.append(figures)
    return lora


def side_by_side(stack: Stack, shape: Sequence[int]) -> LowRank | None:
    """All as one pair of factors with their weights in them; None if one is not low-rank.

    The root of a weight goes into each half, so that neither grows beyond fp16.
    """
    import torch

    from extensions_lib.adapters.base import LowRank, working_dtype

    ups, downs = [], []
    for adapter, weight in stack:
        each = adapter.low_rank(shape)
        if each is None:
            return None
        factor = each.scale * weight
        root = math.sqrt(abs(factor))
        ups.append(each.up * math.copysign(root, factor))
        downs.append(each.down * root)
    dtype = working_dtype(*ups, *downs)
    return LowRank(torch.cat(ups, 1).to(dtype), torch.cat(downs).to(dtype), 1.0)


def _as_it_is(layer: str, factors: LowRank, shape: tuple, result: Merged) -> Adapter:
    from extensions_lib.adapters import LoRA

    rank, kernel = len(factors.down), shape[2:]
    up = factors.up.reshape(shape[0], rank, *[1] * len(kernel))
    down = factors.down.reshape(rank, shape[1], *kernel)
    energy = float((factors.up.mT @ factors.up * (factors.down @ factors.down.mT)).double().sum())
    if not math.isfinite(energy):
        raise ToolProblem(f"{layer}: holds values that are no numbers, or beyond fp32")
    result.layers.append(LayerFigures(layer, shape, rank, 1.0, max(0.0, energy), rank))
    return LoRA(up, down, alpha=float(rank))


def _sum_of(layer: str, stack: Stack, shape: tuple, base: Weights | None) -> Tensor:
    """The sum of the changes of a weight, in full precision."""
    clean = weight_of(layer, stack, shape, base).contiguous()
    total = clean.new_zeros(clean.shape)
    for adapter, weight in stack:
        adapter.check_fit(clean.shape)
        total = adapter.plain(clean.dtype).added(total, clean, weight)
    return total


def _bias(layer: str, stack: Stack, base: Weights | None) -> Tensor | None:
    """The sum of the changes of a bias."""
    total: Tensor | None = None
    stored = base.bias(layer) if base is not None and layer in base else None
    for adapter, weight in stack:
        change = adapter.bias_delta(stored)
        if change is not None:
            total = change * weight if total is None else total + change * weight
    return total


def _with_bias(made: Adapter | None, bias: Tensor | None) -> Adapter:
    from extensions_lib.adapters import Biased, Full

    if bias is None:
        assert made is not None
        return made
    if made is None:
        return Full(diff_b=bias)
    return type(made)(made.diff, bias) if isinstance(made, Full) else Biased(made, bias)


def _precision(networks: Sequence[Network]) -> torch.dtype:
    import torch

    return common_precision(torch.empty(0, dtype=factor_precision(each)) for each in networks)


def _embeddings_stay_behind(networks: Sequence[Network], result: Merged) -> None:
    for network in networks:
        result.left_out += [
            f"{network.path.name}: the embedding {name!r} in it" for name in network.embeddings
        ]


def _metadata(wanted: Sequence[Weighted], stacks: Stacks) -> dict[str, str]:
    """What all of them say alike stays; and what was merged."""
    first, *others = (network.metadata for network in stacks.networks)
    shared = {
        key: text
        for key, text in first.items()
        if key.startswith("ss_") and all(other.get(key) == text for other in others)
    }
    return {**shared, "crucible_merged": ", ".join(as_words(each) for each in wanted)}
