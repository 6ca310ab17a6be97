"""Changes of weights as few ranks: their singular values, and how many of them to keep.

The rank rules have the names and meanings of kohya's sd-scripts (networks/resize_lora.py); the
energy of a change is the square of its Frobenius norm, the sum of its squared singular values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from extensions_lib.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.adapters import LoRA
    from extensions_lib.adapters.base import LowRank

RULES = ("rank", "sv_fro", "sv_ratio", "sv_cumulative")
CURVE = 128  # points of a curve of energy, at most
_OVERSAMPLING = 16  # ranks beyond those kept that a randomised decomposition looks at
_ROUNDS = 4  # of power iterations, each of which sharpens it


@dataclass(frozen=True)
class Ranks:
    """How many ranks each layer keeps."""

    rank: int = option(32, "ranks of a layer; with another rule: at most so many", low=1, high=4096)
    conv_rank: int | None = option(
        None, "the same for k×k convolutions; none: as rank", low=1, high=4096
    )
    rule: str = option(
        "rank",
        "what decides: rank (all layers alike), sv_fro (share of the Frobenius norm), sv_ratio"
        " (largest over smallest kept value), sv_cumulative (share of the sum of values)",
        choices=RULES,
    )
    target: float | None = option(
        None, "of the rule: 0 to 1 for sv_fro and sv_cumulative, above 1 for sv_ratio", low=0
    )

    def most(self, shape: tuple[int, ...]) -> int:
        """The most ranks that a weight of this shape may keep."""
        conv = math.prod(shape[2:]) > 1 and self.conv_rank is not None
        asked = self.conv_rank if conv and self.conv_rank is not None else self.rank
        return min(asked, shape[0], math.prod(shape[1:]))

    def check(self) -> None:
        """Raises ToolProblem for a target that the rule does not take."""
        from extensions_lib.toolbox.work import ToolProblem

        if self.rule == "rank":
            if self.target is not None:
                raise ToolProblem("target belongs to a rule: sv_fro, sv_ratio or sv_cumulative")
            return
        if self.target is None:
            raise ToolProblem(f"{self.rule} needs a target")
        if self.rule == "sv_ratio" and self.target < 1:
            raise ToolProblem(f"sv_ratio takes a target of at least 1, not {self.target:g}")
        if self.rule != "sv_ratio" and not 0 < self.target <= 1:
            raise ToolProblem(f"{self.rule} takes a target from 0 to 1, not {self.target:g}")


class Decomposed(NamedTuple):
    """change [out, in * k] ≈ left [out, n] @ diag(values [n]) @ right [n, in * k].

    `energy` is that of the whole change; n values may not be all there are.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float


@dataclass(frozen=True)
class LayerFigures:
    """What was kept of one layer."""

    layer: str
    shape: tuple[int, ...]
    rank: int  # kept
    kept: float  # share of the energy of the layer's change
    energy: float
    before: int | None = None  # ranks of the input, where it has them
    curve: tuple[float, ...] = ()  # share of the energy that the first 1, 2, … ranks hold


@contextmanager
def layer_named(layer: str) -> Iterator[None]:
    """Turns what cannot be computed of a layer into a ToolProblem that names it."""
    import torch

    from extensions_lib.adapters import AdapterError
    from extensions_lib.toolbox.work import ToolProblem

    try:
        yield
    except torch.linalg.LinAlgError:
        raise ToolProblem(
            f"{layer}: cannot be decomposed: it holds values that are no numbers, or beyond fp32"
        ) from None
    except AdapterError as problem:
        raise ToolProblem(f"{layer}: {problem}") from None


def count(values: Tensor, rule: str, target: float | None, energy: float) -> int:
    """How many of the singular values [n], largest first, a rule keeps: at least 1, at most n.

    sv_fro: the fewest with sum of squares >= target² energy. sv_cumulative: the fewest with a sum
    of at least target times that of all. sv_ratio: those above the largest / target. sd-scripts
    never keeps all of them; here that is possible.
    """
    import torch

    if rule == "rank" or target is None or not len(values) or float(values[0]) == 0:
        return max(1, len(values))
    values = values.double()
    if rule == "sv_ratio":
        return max(1, int((values > values[0] / target).sum()))
    if rule == "sv_fro":
        sums, goal = values.square().cumsum(0), target**2 * energy
    else:
        sums = values.cumsum(0)
        goal = target * float(sums[-1])
    # the whole, summed in another order, may miss its own sum by a last bit
    goal *= 1 - 1e-12
    reached = int(torch.searchsorted(sums, torch.tensor(goal, dtype=sums.dtype)))
    return max(1, min(reached + 1, len(values)))


def of_matrix(change: Tensor, most: int | None = None) -> Decomposed:
    """The singular values and vectors of a change [out, in * k], all or about the first `most`.

    Where `most` is far below the smaller side the decomposition is randomised with power iterations
    (Halko, Martinsson and Tropp 2009, arXiv 0909.4061): the matrix is met a few times by thin ones,
    instead of being decomposed as a whole. The same change gives the same result.
    """
    import torch

    energy = float(torch.linalg.vector_norm(change, dtype=torch.float64).square())
    small = min(change.shape)
    if most is None or (most + _OVERSAMPLING) * 4 > small:
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        return Decomposed(left, values, right, energy)
    left, values, right = _randomised(change, most + _OVERSAMPLING)
    return Decomposed(left[:, :most], values[:most], right[:most], energy)


def _randomised(change: Tensor, looked_at: int) -> tuple[Tensor, Tensor, Tensor]:
    """torch.svd_lowrank from a fixed start, whatever else draws random numbers."""
    import torch

    with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(change, q=looked_at, niter=_ROUNDS)
    return left, values, right.mT


def of_factors(factors: LowRank) -> Decomposed:
    """As `of_matrix` for scale * up @ down, exactly, and without making the whole of it.

    up = Qu Ru and down^T = Qd Rd leave a matrix of the size of the rank: Ru Rd^T.
    """
    import torch

    up, down, scale = factors
    q_up, r_up = torch.linalg.qr(up * scale)
    q_down, r_down = torch.linalg.qr(down.mT)
    left, values, right = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    energy = float(values.double().square().sum())
    return Decomposed(q_up @ left, values, right @ q_down.mT, energy)


def kept_share(found: Decomposed, rank: int) -> float:
    """The share of the energy that the first `rank` values hold; 1 where there is none at all."""
    if found.energy == 0:
        return 1.0
    return min(1.0, float(found.values[:rank].double().square().sum()) / found.energy)


def curve(found: Decomposed) -> tuple[float, ...]:
    """The share of the energy by number of ranks, from 1 on; at most CURVE of them."""
    sums = found.values[:CURVE].double().square().cumsum(0)
    if found.energy == 0:
        return (1.0,) * len(sums)
    return tuple(min(1.0, float(each)) for each in sums / found.energy)


def as_lora(found: Decomposed, rank: int, shape: tuple[int, ...]) -> LoRA:
    """A LoRA of the first `rank` values for a weight of this shape; alpha is its rank.

    Both factors have the root of each value, so that neither leaves the range of fp16.
    """
    from extensions_lib.adapters import LoRA

    rank = min(rank, len(found.values))
    roots = found.values[:rank].sqrt()
    up = (found.left[:, :rank] * roots).contiguous()
    down = (found.right[:rank] * roots[:, None]).contiguous()
    kernel = shape[2:]
    if kernel:
        up, down = up.view(*up.shape, *[1] * len(kernel)), down.view(rank, shape[1], *kernel)
    return LoRA(up, down, alpha=float(rank))


def fitted(
    layer: str,
    found: Decomposed,
    shape: tuple[int, ...],
    ranks: Ranks,
    before: int | None = None,
) -> tuple[LoRA, LayerFigures]:
    """The LoRA of as many ranks as the rule says, and what it keeps."""
    rank = min(ranks.most(shape), count(found.values, ranks.rule, ranks.target, found.energy))
    lora = as_lora(found, rank, shape)
    share = kept_share(found, lora.rank)
    return lora, LayerFigures(layer, shape, lora.rank, share, found.energy, before, curve(found))
