"""What the browser asks for while a prompt is typed: names by kind, and presets of block weights.

What completes with it is in javascript/completion.js, tag_editor.js and partners.js.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.hosts.embeddings import PARTNERS
from extensions_lib.prompts.blocks import LISTS, PRESETS
from extensions_lib.prompts.elements import PRESETS as ELEMENTS
from extensions_lib.ui.cards import preferred_weight

if TYPE_CHECKING:
    from extensions_lib.hosts.standalone import StandaloneHost
    from extensions_lib.hosts.webui import Session
    from extensions_lib.library import Entry, Library

ROUTE = "/crucible/completions"
Row = tuple[str, str, str, str, float, str]


@dataclass(frozen=True)
class Sources:
    """The libraries that names come from."""

    networks: Library
    hypernetworks: Library
    embeddings: Library
    lllites: Library | None = None
    aesthetics: Library | None = None


def row(name: str, entry: Entry) -> Row:
    """Name, alias, kind, base family, preferred weight, activation words.

    Notes that cannot be read are as none: the network's card says so.
    """
    try:
        user = entry.user
    except FileProblem:
        user = {}
    family = "" if entry.family is None else entry.family.value
    words = str(user.get("activation text") or "")
    return name, entry.alias or "", entry.kind, family, preferred_weight(user), words


def completions(sources: Sources) -> dict[str, Any]:
    """All there is to offer, by name. Broken files are left out: nothing can be done with them."""
    tagged = {
        "lora": sources.networks,
        "hypernet": sources.hypernetworks,
        "lllite": sources.lllites,
        "aesthetic": sources.aesthetics,
    }
    for library in (*tagged.values(), sources.embeddings):
        if library is not None:
            library.refresh()
    return {
        **{kind: _rows(each, each.tag_name) if each else [] for kind, each in tagged.items()},
        "embedding": _rows(sources.embeddings, _embedding_name),
        "partners": partners(sources.embeddings),
        "presets": dict(PRESETS),
        "elements": dict(ELEMENTS),
        "lists": {str(size): list(names) for size, names in LISTS.items()},
    }


def _embedding_name(entry: Entry) -> str:
    """A picture goes by the name that it states, as in the WebUI."""
    return entry.alias or entry.name


def partners(embeddings: Library) -> dict[str, list[str]]:
    """The embeddings that have another half for the negative prompt, and the names of those."""
    found: dict[str, list[str]] = {}
    for entry in embeddings.entries:
        name = _embedding_name(entry)
        for other in (embeddings.find(name + ending) for ending in PARTNERS):
            if other is None or entry.problem or other.problem or other.family != entry.family:
                continue
            found.setdefault(name, []).append(_embedding_name(other))
    return found


def _rows(library: Library, name_of: Callable[[Entry], str]) -> list[Row]:
    rows = [row(name_of(entry), entry) for entry in library.entries if not entry.problem]
    return sorted(rows, key=lambda each: each[0].casefold())


def answer(sources: Sources, have: str = "") -> bytes:
    """The answer to the browser, JSON; {"same": true} if it has this very answer already.

    have: the "stamp" of the answer that the browser has.
    """
    told = completions(sources)
    # ASCII: a file can spell half a character, which no other encoding has.
    stamp = hashlib.sha256(json.dumps(told).encode("ascii")).hexdigest()[:16]
    if have == stamp:
        return b'{"same": true}'
    return json.dumps({"stamp": stamp, **told}).encode("ascii")


def add_route(app: Any, sources: Callable[[], Sources]) -> None:
    """`GET /crucible/completions`, also in the old FastAPI of a WebUI.

    sources: asked at the first request, so that nothing is read before it is needed.
    """
    from fastapi import Response

    def names(have: str = "") -> Any:
        return Response(answer(sources(), have), media_type="application/json")

    app.add_api_route(ROUTE, names, methods=["GET"])


def host_sources(host: StandaloneHost) -> Sources:
    """The libraries of the standalone host."""
    return Sources(host.library, host.hypernetworks, host.embeddings, host.lllites, host.aesthetics)


def webui_sources(
    session: Session, options: Any, cache: Path, lllites: Callable[[], Library] | None = None
) -> Callable[[], Sources]:
    """The libraries of a WebUI, by its command-line options; made when first asked for."""
    from extensions_lib.library import EMBEDDINGS, HYPERNETWORKS, Library, Shelf

    def shelved(option: str, shelf: Shelf) -> Library:
        named = getattr(options, option, None)
        return Library([Path(named).absolute()] if named else [], cache, shelf)

    @once
    def sources() -> Sources:
        return Sources(
            session.library,
            shelved("hypernetwork_dir", HYPERNETWORKS),
            shelved("embeddings_dir", EMBEDDINGS),
            None if lllites is None else lllites(),
        )

    return sources
