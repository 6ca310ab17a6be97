"""A network with its weights, written as in a prompt's tag; and what it makes of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.keys import KNOWN
from extensions_lib.models.families import SD15, Family, Structure
from extensions_lib.models.names import component_of, named_blocks
from extensions_lib.prompts.blocks import BASE, Blocks
from extensions_lib.prompts.tags import network_requests
from extensions_lib.toolbox.work import ToolProblem

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.adapters import Adapter
    from extensions_lib.files.networks import Network
    from extensions_lib.files.weights import Weights


@dataclass(frozen=True)
class Weighted:
    """A network file and how strong it is, as a tag says it."""

    path: Path
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None
    blocks: Blocks | None = None

    @classmethod
    def read(cls, text: str) -> Weighted:
        """`FILE`, or `FILE:te:unet:dyn` with what else a tag takes: `FILE:0.8:lbw=MIDD`.

        Raises FileProblem for no such file, ToolProblem for weights that cannot be used.
        """
        pieces = text.split(":")
        # A name may have colons of its own, as C:\\… has.
        for end in range(len(pieces), 0, -1):
            path = Path(":".join(pieces[:end]))
            if path.is_file():
                return cls._said(path, ":".join(pieces[end:]))
        raise FileProblem(f"{pieces[0]}: there is no such file; check the name")

    @classmethod
    def _said(cls, path: Path, rest: str) -> Weighted:
        if not rest:
            return cls(path)
        _, requests, problems = network_requests(f"<lora:network:{rest}>")
        if problems:
            raise ToolProblem(f"{path.name}: {problems[0].message}")
        [request] = requests
        plan = request.plan
        if plan and (plan.changing or not plan.te.constant or plan.hr_te or plan.hr_unet):
            raise ToolProblem(f"{path.name}: a file has no steps; give a weight, not {rest!r}")
        blocks = plan.blocks if plan else None
        return cls(path, request.te, request.unet, request.dyn, blocks)

    def of(self, layer: str, structure: Structure) -> float:
        """How strong it is in a layer of this model."""
        component = component_of(layer)
        weight = self.te if component.startswith("te") else self.unet
        if self.blocks is None or component == "vae":
            return weight
        block, names = named_blocks(structure).get(layer, ("", (layer,)))
        return weight * self.blocks.of(BASE if block is None else block, names)


def usual(family: Family | None) -> Structure:
    """The standard model of a family: for block numbers where no checkpoint is at hand."""
    return next((each for each in KNOWN if each.family is family), SD15)


def as_words(each: Weighted) -> str:
    """The file and its weights, for metadata."""
    return f"{each.path.stem}:{each.te:g}:{each.unet:g}"


# --- several networks by layer ----------------------------------------------------------------


@dataclass
class Stacks:
    """What several networks do to each layer: adapters with their weights, zero left out."""

    layers: dict[str, list[tuple[Adapter, float]]] = field(default_factory=dict)
    networks: list[Network] = field(default_factory=list)
    family: Family | None = None


def stacked(
    wanted: Sequence[Weighted], networks: Sequence[Network], structure: Structure | None = None
) -> Stacks:
    """The networks layer by layer. Raises ToolProblem for networks of two families."""
    families = {each.path.name: each.family for each in networks if each.family is not None}
    if len(set(families.values())) > 1:
        said = ", ".join(f"{name} is for {family}" for name, family in families.items())
        raise ToolProblem(f"networks of one family go together, and {said}")
    found = Stacks(networks=list(networks), family=next(iter(families.values()), None))
    model = structure or usual(found.family)
    for order, network in zip(wanted, networks, strict=True):
        for layer, adapter in network.adapters.items():
            weight = order.of(layer, model)
            cut = adapter if order.dyn is None else adapter.first_ranks(order.dyn)
            if weight:
                found.layers.setdefault(layer, []).append((cut, weight))
    return found


def needs_base(adapter: Adapter) -> bool:
    """Whether its change depends on the weight it changes."""
    from extensions_lib.adapters import Biased, Full, LoHa, LoKr, LoRA, Sparse

    while isinstance(adapter, (Biased, Sparse)):
        adapter = adapter.inner
    return not isinstance(adapter, (LoRA, LoHa, LoKr, Full))


def shape_of(layer: str, stack: Sequence[tuple[Adapter, float]], base: Weights | None) -> tuple:
    """The shape of a layer's weight: the checkpoint's, else as its adapters tell.

    Raises ToolProblem where they do not.
    """
    from extensions_lib.files.recognise import layers_of

    if base is not None and layer in base:
        return layers_of(base.structure)[layer].shape
    known = [layers_of(each)[layer].shape for each in KNOWN if layer in layers_of(each)]
    told = [adapter.shape for adapter, _ in stack if -1 not in adapter.shape and not adapter.flat]
    for shape in (*known, *told):
        if not any(adapter.misfit(shape) for adapter, _ in stack):
            return tuple(shape)
    raise ToolProblem(
        f"{layer}: the networks were made for weights of different sizes, or do not tell of which;"
        " name their checkpoint with --base"
    )


def weight_of(
    layer: str, stack: Sequence[tuple[Adapter, float]], shape: Sequence[int], base: Weights | None
) -> Tensor:
    """What the changes are computed on: the checkpoint's weight where they depend on it, else 0.

    Raises ToolProblem where a checkpoint is needed and not given.
    """
    import torch

    from extensions_lib.adapters.base import working_dtype

    if any(needs_base(adapter) for adapter, _ in stack):
        if base is None or layer not in base:
            kinds = sorted({type(adapter).__name__ for adapter, _ in stack if needs_base(adapter)})
            raise ToolProblem(
                f"{layer}: the change of a {kinds[0]} depends on the weight it is made for; name"
                " the checkpoint with --base"
            )
        weight = base.weight(layer)
        return weight.to(working_dtype(weight))
    dtype = working_dtype(*(part for adapter, _ in stack for part in adapter.parameters().values()))
    return torch.zeros(tuple(shape), dtype=dtype)


def opened_base(path: str) -> AbstractContextManager[Weights | None]:
    """The checkpoint of an option `base`; None where it is not given. Raises FileProblem."""
    if not path:
        return nullcontext(None)
    from extensions_lib.files.weights import Weights

    return Weights(path)
