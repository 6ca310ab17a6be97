"""The kinds of file that an index can hold, and what it learns of each from its header alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem
from extensions_lib.files import aesthetics, embeddings, hypernetworks
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header
from extensions_lib.models.families import Family
from extensions_lib.models.strangers import describe

Facts = dict[str, Any]
NETWORK_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Shelf:
    """One kind of file.

    `learn` gives what is kept of a file, "problem" if it cannot be used, None if it is none of the
    kind (a picture without an embedding). `key` names what is kept: a change of what is learnt
    from a header takes a new one. `whole_hash`: these files are known by the hash of all their
    bytes.
    """

    key: str
    suffixes: tuple[str, ...]
    learn: Callable[[Path], Facts | None]
    whole_hash: bool = False


def learn(shelf: Shelf, path: Path) -> Facts:
    """What the index keeps of a file: {} if it is none of the kind."""
    try:
        return shelf.learn(path) or {}
    except FileProblem as problem:
        return {"problem": str(problem)}


def _network(path: Path) -> Facts:
    header = read_any_header(path)
    facts = facts_of(header.shapes)
    learnt: Facts = {
        "alias": header.metadata.get("ss_output_name") or None,
        "kind": facts.title,
        "family": _value(facts.family),
        "layers": facts.layers,
    }
    if not facts.layers:
        made_for = facts.foreign or describe(header.tensors)
        learnt["problem"] = f"{path}: holds no layer known here: {made_for}"
    return learnt


_EMBEDDING_FAMILIES = {(768,): Family.SD1, (1024,): Family.SD2, (768, 1280): Family.SDXL}


def _embedding(path: Path) -> Facts | None:
    facts = embeddings.embedding_facts(path)
    if facts is None:
        return None
    widths = tuple(facts.widths[part] for part in embeddings.part_names(len(facts.widths)))
    return {
        "alias": facts.name,
        "kind": "Embedding",
        "family": _value(_EMBEDDING_FAMILIES.get(widths)),
        "widths": dict(facts.widths),
        "vectors": facts.vectors,
    }


def _hypernetwork(path: Path) -> Facts:
    widths = hypernetworks.hypernetwork_widths(path)
    # the width of a family's text context; the others are those of self-attention
    families = {768: Family.SD1, 1024: Family.SD2, 2048: Family.SDXL}
    found = [family for width, family in families.items() if width in widths]
    return {
        "kind": "Hypernetwork",
        "family": _value(found[0]) if len(found) == 1 else None,
        "widths": {str(width): width for width in widths},
        "layers": 2 * len(widths),
    }


def _aesthetic(path: Path) -> Facts:
    width = aesthetics.aesthetic_width(path)
    return {"kind": "Aesthetic", "family": _value(Family.SD1), "widths": {"": width}, "vectors": 1}


def _value(family: Family | None) -> str | None:
    return family.value if family else None


NETWORKS = Shelf("network-1", NETWORK_SUFFIXES, _network)
EMBEDDINGS = Shelf("embedding-1", embeddings.SUFFIXES, _embedding, whole_hash=True)
HYPERNETWORKS = Shelf("hypernetwork-1", hypernetworks.SUFFIXES, _hypernetwork, whole_hash=True)
AESTHETICS = Shelf("aesthetic-1", aesthetics.SUFFIXES, _aesthetic, whole_hash=True)
