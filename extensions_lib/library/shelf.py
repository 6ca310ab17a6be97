"""The kinds of file that an index can hold, and what it learns of each from its header alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem
from extensions_lib.files import aesthetics, embeddings, hypernetworks, lllite
from extensions_lib.files.foreign import use
from extensions_lib.files.hashes import stated_hash
from extensions_lib.files.header import Header, HeaderText, read_header_text
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import is_pickle, read_any_header
from extensions_lib.models.families import Family
from extensions_lib.models.strangers import describe, is_network

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
    header: Header | HeaderText
    if is_pickle(path):
        header = read_any_header(path)
        learnt = _of_tensors(header)
    else:
        header = read_header_text(path)
        learnt = dict(_of_text(header))
    if "made for" in learnt:
        made_for = learnt.pop("made for")
        instead = use(made_for, path.stem)
        learnt["problem"] = f"{path}: holds no layer known here: {made_for}" + (
            f"; {instead}" if instead else ""
        )
    told = {"alias": header.metadata.get("ss_output_name"), "hash": stated_hash(header)}
    return learnt | {name: value for name, value in told.items() if value}


# A library holds thousands of files in a few dozen layouts: one for each trainer, kind and rank.
@lru_cache(maxsize=128)
def _of_text(text: HeaderText) -> Facts:
    return _of_tensors(text.parsed())


def _of_tensors(header: Header) -> Facts:
    facts = facts_of(header.shapes)
    learnt: Facts = {
        "kind": facts.title,
        "family": _value(facts.family),
        "layers": facts.layers,
    }
    if not facts.layers:
        wrong = [*facts.problems, *(facts.unmatched if is_network(header.tensors) else [])]
        learnt["made for"] = facts.foreign or next(iter(wrong), None) or describe(header.tensors)
    return learnt


def forget_alike() -> None:
    """Frees what was kept to learn of like files, which is as large as their headers."""
    _of_text.cache_clear()


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


def _lllite(path: Path) -> Facts | None:
    facts = lllite.lllite_header(path)
    if facts is None:
        return None
    learnt: Facts = {"kind": "LLLite", "family": _value(facts.family), "layers": facts.layers}
    if not facts.layers:
        wrong = next(iter([*facts.problems, *facts.unmatched]), "")
        learnt["problem"] = f"{path}: holds no layer known here: {wrong}"
    return learnt


def _value(family: Family | None) -> str | None:
    return family.value if family else None


NETWORKS = Shelf("network-3", NETWORK_SUFFIXES, _network)
EMBEDDINGS = Shelf("embedding-2", embeddings.SUFFIXES, _embedding, whole_hash=True)
HYPERNETWORKS = Shelf("hypernetwork-1", hypernetworks.SUFFIXES, _hypernetwork, whole_hash=True)
LLLITES = Shelf("lllite-1", lllite.SUFFIXES, _lllite, whole_hash=True)
AESTHETICS = Shelf("aesthetic-1", aesthetics.SUFFIXES, _aesthetic, whole_hash=True)
