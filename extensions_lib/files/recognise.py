"""What a network file is, told from the names and shapes of its tensors; never from its metadata.

Needs no torch, so that an index of thousands of files reads headers alone.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from extensions_lib.files.comfyui import with_kernel
from extensions_lib.files.foreign import foreign_family, unsupported
from extensions_lib.files.keys import KNOWN, Grouped, Value, group
from extensions_lib.files.sizes import Shape, Shapes, columns_of, outputs, sizes
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.names import LayerInfo, canonical_layers

# kind -> the parts a layer of it must have; an entry may name alternatives with "|". The first kind
# that fits has the layer.
SIGNATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lora", ("lora_up.weight", "lora_down.weight")),
    ("loha", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    ("lokr", ("lokr_w1|lokr_w1_a", "lokr_w2|lokr_w2_a")),
    ("glora", ("a1.weight", "a2.weight", "b1.weight", "b2.weight")),
    ("ia3", ("weight", "on_input")),
    ("ia3", ("ia3_l",)),
    ("oft", ("oft_blocks|oft_diag|oft_in|oft_R",)),
    ("boft", ("boft_R", "boft_s")),
    ("norm", ("w_norm|b_norm",)),
    ("full", ("diff|diff_b",)),
)
TITLES: Mapping[str, str] = {
    "lora": "LoRA", "locon": "LoCon", "loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA",
    "ia3": "IA3", "oft": "OFT", "boft": "BOFT", "diag_oft": "Diag-OFT", "oft_diag": "OFT (diag)",
    "norm": "Norm", "full": "Full", "dora": "DoRA",
}  # fmt: skip
# a part that is nothing without the other
_PAIRS = (
    ("lora_up.weight", "lora_down.weight"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"), ("a1.weight", "a2.weight"),
    ("b1.weight", "b2.weight"), ("lora_embedding_A", "lora_embedding_B"),
    ("boft_R", "boft_s"),
)  # fmt: skip


# what a layer of a model itself has
OWN = ("weight", "bias")


def kind_of(parts: Collection[str]) -> str | None:
    """The algorithm that a layer's parts belong to ("lora", "loha", …), or None."""
    for kind, needed in SIGNATURES:
        if all(any(name in parts for name in entry.split("|")) for entry in needed):
            return kind
    return None


def without_kind(parts: Collection[str]) -> str:
    """What parts are that no known algorithm has, in words."""
    named = ", ".join(sorted(parts))
    if set(parts) <= {*OWN}:  # PEFT's modules_to_save
        return f"{named}: in place of the model's own, which is not supported"
    return named


def standard_parts(
    parts: dict[str, Value],
    shape: Callable[[Value], Shape],
    view: Callable[[Value, Shape], Value],
    transposed: Callable[[Value], Value],
) -> dict[str, Value]:
    """The parts of a layer in the form in which every trainer but PEFT has them; without copies.

    PEFT keeps DoRA's magnitude as [out], or [1, out, 1, 1] for a convolution, where LyCORIS has
    [out, 1(, 1, 1)]; and the factors of an embedding the other way round. `shape`, `view` and
    `transposed` do that to a value, which is a tensor or a mere shape.
    """
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None and "dora_scale" not in parts:
        found = shape(magnitude)
        if len(found) == 1 or found[:1] == (1,):
            down = parts.get("lora_down.weight")
            ones = (1,) * (max(len(found), len(shape(down)) if down is not None else 2) - 1)
            parts = {**parts, "dora_scale": view(magnitude, (math.prod(found), *ones))}
            del parts["lora_magnitude_vector"]
    first, second = parts.get("lora_embedding_A"), parts.get("lora_embedding_B")
    if first is not None and second is not None and len(shape(first)) == len(shape(second)) == 2:
        parts = {k: v for k, v in parts.items() if not k.startswith("lora_embedding_")}
        parts |= {"lora_up.weight": transposed(first), "lora_down.weight": transposed(second)}
    return parts


def standard_shapes(parts: dict[str, Shape]) -> dict[str, Shape]:
    return standard_parts(parts, tuple, lambda _, new: new, lambda old: old[::-1])


def missing_part(parts: Collection[str]) -> str | None:
    """Says which half of a pair is not there, or None."""
    for first, second in _PAIRS:
        for there, lacking in ((first, second), (second, first)):
            if there in parts and lacking not in parts:
                return f"has {there} without {lacking}"
    return None


def rank_of(parts: Shapes) -> int | None:
    """The rank of a layer, for the algorithms that have one."""
    for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if parts.get(name):
            return parts[name][0]
    if "a1.weight" in parts and "a2.weight" in parts:
        return min((*parts["a1.weight"][:2], *parts["a2.weight"][:2]), default=None)
    return None


@functools.lru_cache(maxsize=8)
def layers_of(structure: Structure) -> Mapping[str, LayerInfo]:
    return canonical_layers(structure)


def fits(parts: Shapes, weight: Shape) -> bool | None:
    """Whether a layer's parts were made for a weight of this shape; None where they do not tell."""
    found = sizes(parts)
    inputs = {weight[1], math.prod(weight[1:])} if len(weight) > 1 else {1}
    if found is None:
        only, columns = outputs(parts), columns_of(parts)
        if only is None and columns is None:
            return None
        return only in (None, weight[0]) and (columns is None or columns in inputs)
    if len(weight) > 2 and weight[1] == _LATENTS:
        inputs |= {_INPAINTING, math.prod((_INPAINTING, *weight[2:]))}
    return found[0] == weight[0] and found[1] in inputs


_LATENTS, _INPAINTING = 4, 9  # input channels of a UNet, and of one that also takes a mask


def family_of(
    layers: Mapping[str, Shapes],
    *,
    one_text_encoder: bool = False,
    loaded: Structure | None = None,
) -> Family | None:
    """The family whose layers these are, by their widths; None if several or none would do.

    one_text_encoder: the file names its text encoder as the only one (`lora_te_`), which parts SD1
    from SDXL, whose first text encoder is the same.
    loaded: the model that they are read for, where there is one.

    Where no known family has such widths (a small model), layers that all fit the loaded one are
    of its family; otherwise names that only SD1 and SD2 have mean SD1.
    """
    scores: dict[Family, float] = {}
    named: set[Family] = set()
    for structure in KNOWN:
        verdicts = _verdicts(layers, structure)
        if layers and all(layer in layers_of(structure) for layer in layers):
            named.add(structure.family)
        told = [verdict for verdict in verdicts if verdict is not None]
        score = sum(told) / len(told) if told else 0.0
        scores[structure.family] = max(score, scores.get(structure.family, 0.0))
    best = max(scores.values(), default=0.0)
    if best > 0.5:
        winners = [family for family, score in scores.items() if score == best]
        if one_text_encoder and len(winners) > 1:
            winners = [family for family in winners if family is not Family.SDXL]
        return winners[0] if len(winners) == 1 else None
    if loaded is not None and _told(layers) and False not in _verdicts(layers, loaded):
        return loaded.family
    if Family.SD1 in named and Family.SDXL not in named:
        return Family.SD1
    return Family.SDXL if named == {Family.SDXL} and best == 0.0 and not _told(layers) else None


def _verdicts(layers: Mapping[str, Shapes], structure: Structure) -> list[bool | None]:
    weights = layers_of(structure)
    return [
        fits(parts, weights[layer].shape) if layer in weights else False
        for layer, parts in layers.items()
    ]


def strays(layers: Iterable[str], family: Family | None) -> list[str]:
    """The layers that no model of the family has; none where the family is not known."""
    known = [layers_of(structure) for structure in KNOWN if structure.family is family]
    return [layer for layer in layers if known and not any(layer in own for own in known)]


def _told(layers: Mapping[str, Shapes]) -> bool:
    return any(sizes(parts) is not None for parts in layers.values())


@dataclass
class NetworkFacts:
    """What a header tells of a network."""

    family: Family | None
    kinds: Counter[str] = field(default_factory=Counter)  # algorithm -> layers
    ranks: Counter[int] = field(default_factory=Counter)  # rank -> layers
    components: Counter[str] = field(default_factory=Counter)  # "unet", "te1", … -> layers
    ways: Counter[str] = field(default_factory=Counter)  # whose way of naming -> layers
    embeddings: dict[str, tuple[str, ...]] = field(default_factory=dict)  # bundled: name -> parts
    unmatched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    foreign: str | None = None  # a family unknown here that it was made for
    convolutions: bool = False  # a LoRA that also changes k×k convolutions is a LoCon
    dora: int = 0  # layers with a DoRA magnitude

    @property
    def layers(self) -> int:
        return sum(self.components.values())

    @property
    def title(self) -> str:
        """ "LoRA", "LoCon", "LoHa", "LoKr + Norm", "LoRA (DoRA)", …; "" for no network."""
        names = [TITLES.get(kind, kind) for kind, _ in self.kinds.most_common()]
        if self.convolutions:
            names = ["LoCon" if name == "LoRA" else name for name in names]
        return " + ".join(names) + (" (DoRA)" if self.dora and names else "")


def facts_of(shapes: Shapes) -> NetworkFacts:
    """Sorts the tensors of a network file by their names and shapes alone."""
    grouped = group(shapes)
    foreign = made_for_others(grouped)
    facts = NetworkFacts(
        None,
        unmatched=list(grouped.unmatched),
        problems=list(grouped.problems),
        notes=list(grouped.notes),
        ways=grouped.ways,
        embeddings={name: tuple(parts) for name, parts in grouped.embeddings.items()},
        foreign=foreign,
    )
    if foreign:
        return facts
    understood: dict[str, Shapes] = {}
    for layer, found in grouped.layers.items():
        parts = with_kernel(layer, standard_shapes(found), KNOWN, tuple, lambda _, new: new)
        kind, problem = kind_of(parts), unsupported(parts) or missing_part(parts)
        if problem:
            facts.problems.append(f"{layer}: {problem}")
        elif kind is None:
            facts.unmatched.append(f"{grouped.spelled[layer]} ({without_kind(parts)})")
        else:
            understood[layer] = parts
            # a butterfly is told from other rotations by one more dimension
            blocks = parts.get("oft_blocks", parts.get("oft_in", ()))
            butterfly = kind == "oft" and len(blocks) == 4
            _count(facts, layer, "boft" if butterfly else kind, parts)
    facts.family = family_of(understood, one_text_encoder=names_one_text_encoder(grouped))
    return facts


def _count(facts: NetworkFacts, layer: str, kind: str, parts: Shapes) -> None:
    facts.kinds[kind] += 1
    facts.components[layer.partition(".")[0]] += 1
    rank = rank_of(parts)
    if rank is not None:
        facts.ranks[rank] += 1
    kernel = parts.get("lora_mid.weight", parts.get("lora_down.weight", ()))[2:]
    facts.convolutions |= math.prod(kernel) > 1
    facts.dora += "dora_scale" in parts


def made_for_others(grouped: Grouped[Any]) -> str | None:
    """The family, unknown here, whose network this is; its CLIP may still have names known here."""
    if len(grouped.unmatched) == 0 or any(layer.startswith("unet.") for layer in grouped.layers):
        return None
    return foreign_family(grouped.unmatched)


def names_one_text_encoder(grouped: Grouped[Any]) -> bool:
    return any(name.startswith("lora_te_") for name in grouped.spelled.values())
