"""What a network file is, told from the names and shapes of its tensors; never from its metadata.

Needs no torch, so that an index of thousands of files reads headers alone.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from extensions_lib.files.keys import KNOWN, Grouped, group
from extensions_lib.models.families import Family, Structure
from extensions_lib.models.names import LayerInfo, canonical_layers

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# kind -> the parts a layer of it must have; an entry may name alternatives with "|". The first kind
# that fits has the layer.
SIGNATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lora", ("lora_up.weight", "lora_down.weight")),
    ("loha", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    ("lokr", ("lokr_w1|lokr_w1_a", "lokr_w2|lokr_w2_a")),
    ("glora", ("a1.weight", "a2.weight", "b1.weight", "b2.weight")),
    ("ia3", ("weight", "on_input")),
    ("oft", ("oft_blocks|oft_diag",)),
    ("norm", ("w_norm",)),
    ("full", ("diff|diff_b",)),
)
TITLES: Mapping[str, str] = {
    "lora": "LoRA", "locon": "LoCon", "loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA",
    "ia3": "IA3", "oft": "OFT", "norm": "Norm", "full": "Full", "dora": "DoRA",
}  # fmt: skip
# a part that is nothing without the other
_PAIRS = (
    ("lora_up.weight", "lora_down.weight"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"), ("a1.weight", "a2.weight"),
    ("b1.weight", "b2.weight"),
)  # fmt: skip


def kind_of(parts: Collection[str]) -> str | None:
    """The algorithm that a layer's parts belong to ("lora", "loha", …), or None."""
    for kind, needed in SIGNATURES:
        if all(any(name in parts for name in entry.split("|")) for entry in needed):
            return kind
    return None


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
    return None


def sizes(parts: Shapes) -> tuple[int, int] | None:
    """(out, in·kernel or in) of the weight that a layer's parts were made for, where they tell."""
    try:
        if "lora_up.weight" in parts:
            return parts["lora_up.weight"][0], parts["lora_down.weight"][1]
        if "hada_t1" in parts:
            return parts["hada_w1_a"][1], parts["hada_w1_b"][1]
        if "hada_w1_a" in parts:
            return parts["hada_w1_a"][0], parts["hada_w1_b"][1]
        if "lokr_w1" in parts or "lokr_w1_a" in parts:
            first, second = _factor(parts, "lokr_w1"), _factor(parts, "lokr_w2")
            return first[0] * second[0], first[1] * second[1]
        if "diff" in parts:
            return parts["diff"][0], math.prod(parts["diff"][1:])
    except (KeyError, IndexError):
        pass  # a broken layer tells nothing; reading it says what is wrong
    return None


def _factor(parts: Shapes, name: str) -> tuple[int, int]:
    if name in parts:
        return parts[name][0], parts[name][1]
    transposed = name.endswith("w2") and "lokr_t2" in parts
    return parts[f"{name}_a"][1 if transposed else 0], parts[f"{name}_b"][1]


@functools.lru_cache(maxsize=8)
def layers_of(structure: Structure) -> Mapping[str, LayerInfo]:
    return canonical_layers(structure)


def fits(parts: Shapes, weight: Shape) -> bool | None:
    """Whether a layer's parts were made for a weight of this shape; None where they do not tell."""
    found = sizes(parts)
    if found is None:
        return None
    inputs = {weight[1], math.prod(weight[1:])} if len(weight) > 1 else {1}
    return found[0] == weight[0] and found[1] in inputs


def family_of(layers: Mapping[str, Shapes], *, one_text_encoder: bool = False) -> Family | None:
    """The family whose layers these are, by their widths; None if several or none would do.

    one_text_encoder: the file names its text encoder as the only one (`lora_te_`), which parts SD1
    from SDXL, whose first text encoder is the same.

    Where no known family has such widths (a small model), names that only SD1 and SD2 have
    mean SD1.
    """
    scores: dict[Family, float] = {}
    named: set[Family] = set()
    for structure in KNOWN:
        weights = layers_of(structure)
        if not layers or any(layer not in weights for layer in layers):
            continue
        named.add(structure.family)
        verdicts = [fits(parts, weights[layer].shape) for layer, parts in layers.items()]
        told = [verdict for verdict in verdicts if verdict is not None]
        score = sum(told) / len(told) if told else 0.0
        scores[structure.family] = max(score, scores.get(structure.family, 0.0))
    best = max(scores.values(), default=0.0)
    if best > 0.5:
        winners = [family for family, score in scores.items() if score == best]
        if one_text_encoder and len(winners) > 1:
            winners = [family for family in winners if family is not Family.SDXL]
        return winners[0] if len(winners) == 1 else None
    if Family.SD1 in named and Family.SDXL not in named:
        return Family.SD1
    return Family.SDXL if named == {Family.SDXL} and best == 0.0 and not _told(layers) else None


def _told(layers: Mapping[str, Shapes]) -> bool:
    return any(sizes(parts) is not None for parts in layers.values())


@dataclass
class NetworkFacts:
    """What a header tells of a network."""

    family: Family | None
    kinds: Counter[str] = field(default_factory=Counter)  # algorithm -> layers
    ranks: Counter[int] = field(default_factory=Counter)  # rank -> layers
    components: Counter[str] = field(default_factory=Counter)  # "unet", "te1", … -> layers
    unmatched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    convolutions: bool = False  # a LoRA that also changes k×k convolutions is a LoCon
    dora: bool = False

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
    understood: dict[str, Shapes] = {}
    facts = NetworkFacts(None, unmatched=list(grouped.unmatched), problems=list(grouped.problems))
    for layer, parts in grouped.layers.items():
        kind, missing = kind_of(parts), missing_part(parts)
        if missing:
            facts.problems.append(f"{layer}: {missing}")
            continue
        if kind is None:
            facts.unmatched.append(f"{grouped.spelled[layer]} ({', '.join(sorted(parts))})")
            continue
        understood[layer] = parts
        facts.kinds[kind] += 1
        facts.components[layer.partition(".")[0]] += 1
        rank = rank_of(parts)
        if rank is not None:
            facts.ranks[rank] += 1
        kernel = parts.get("lora_mid.weight", parts.get("lora_down.weight", ()))[2:]
        facts.convolutions |= math.prod(kernel) > 1
        facts.dora |= "dora_scale" in parts
    facts.family = family_of(understood, one_text_encoder=names_one_text_encoder(grouped))
    return facts


def names_one_text_encoder(grouped: Grouped[Any]) -> bool:
    return any(name.startswith("lora_te_") for name in grouped.spelled.values())
