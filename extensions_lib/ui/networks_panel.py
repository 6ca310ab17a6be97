"""The networks panel of the standalone host: cards that put a network into the prompt."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import gradio as gr

from extensions_lib.ui.cards import Card, card_of, cards_html
from extensions_lib.ui.compat import at_once
from extensions_lib.ui.network_info import POPUP

if TYPE_CHECKING:
    from extensions_lib.library import Entry, Library

PREVIEW_ROUTE = "/crucible/preview"
FINDER = (
    '<div class="crucible-finder">'
    '<input type="search" id="crucible-search" autocomplete="off" spellcheck="false"'
    ' placeholder="Search networks" aria-label="Search networks">'
    '<select id="crucible-sort" aria-label="Sort networks by">'
    '<option value="name">Name</option><option value="newest">Newest</option>'
    '<option value="kind">Kind</option></select></div>'
)


@dataclass
class Shelf:
    """The networks on disk, and the preview pictures that the page may ask for."""

    library: Library
    _previews: dict[str, Path] = field(default_factory=dict)

    def cards(self, family: str) -> list[Card]:
        """A card for every file, for a checkpoint of this family ("" if not known)."""
        return [
            card_of(entry, self.library.tag_name(entry), family, self._preview_url(entry))
            for entry in self.library.entries
        ]

    def entry(self, path: str) -> Entry | None:
        """The network of this very file; no file outside the network folders can be asked for."""
        return next((entry for entry in self.library.entries if str(entry.path) == path), None)

    def preview(self, key: str) -> Path | None:
        """The preview picture that a card named; nothing else on disk can be asked for."""
        return self._previews.get(key)

    def _preview_url(self, entry: Entry) -> str:
        path = entry.preview
        if path is None or not path.is_file():
            return ""
        # The time of change in the name makes a browser fetch a replaced picture anew.
        key = f"{entry.relative}-{os.stat(path).st_mtime_ns:x}".replace("/", "-")
        self._previews[key] = path
        return f"{PREVIEW_ROUTE}/{quote(key, safe='')}"


@dataclass(frozen=True)
class NetworksPanel:
    """The cards' component and the function that renders them for a chosen checkpoint."""

    cards: gr.HTML
    render: Callable[[str | None], str]


def build_panel(
    shelf: Shelf, checkpoint: gr.Dropdown, family_of: Callable[[str | None], str]
) -> NetworksPanel:
    """Builds search box, sorting, Refresh, the cards and the popup that tells about one.

    The cards are filled when the page opens, the popup when it does.
    """

    def render(chosen: str | None) -> str:
        # A look at sizes and times only, unless a file is new: a fresh page is always right.
        shelf.library.refresh()
        return cards_html(shelf.cards(family_of(chosen)), shelf.library.folders, chosen or "")

    with gr.Row(elem_classes=["crucible-toolbar"]):
        gr.HTML(FINDER + POPUP, elem_id="crucible-searchbox")
        again = gr.Button("Refresh", size="sm", scale=0, min_width=90, elem_id="crucible-refresh")
    cards = gr.HTML(elem_id="crucible-networks")
    again.click(render, checkpoint, cards, **at_once())
    return NetworksPanel(cards, render)
