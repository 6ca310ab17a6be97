"""Crucible's networks in a WebUI's own places: the Lora cards, the REST routes, pasted infotext."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.hashes import short_network_hash
from extensions_lib.prompts.infotext import read_hashes, rename_by_hash
from extensions_lib.ui.cards import Card, card_of

if TYPE_CHECKING:
    from extensions_lib.hosts.webui import Session
    from extensions_lib.library import Entry


def make_page(session: Session) -> Any:
    """The WebUI's page of Lora cards: every file of our library, and what is odd about it."""
    from modules import shared, ui_extra_networks

    class NetworksPage(ui_extra_networks.ExtraNetworksPage):
        """What the WebUI asks of such a page."""

        def __init__(self) -> None:
            super().__init__("Lora")

        def refresh(self) -> None:
            session.library.refresh()

        def list_items(self) -> Iterator[dict[str, Any]]:
            for index, entry in enumerate(list(session.library.entries)):
                if item := self.create_item(session.library.tag_name(entry), index):
                    yield item

        def create_item(
            self, name: str, index: int | None = None, enable_filter: bool = True
        ) -> dict[str, Any] | None:
            entry = session.library.find(name)
            if entry is None:
                return None
            card = card_of(entry, name, _family_of(shared), "")
            stem = os.path.splitext(str(entry.path))[0]
            metadata = readable_metadata(entry)
            preview = self.find_preview(stem) or self.find_embedded_preview(stem, name, metadata)
            item = {
                "name": name,
                "filename": str(entry.path),
                "shorthash": _short_hash(entry),
                "preview": preview,
                "description": card.description,
                "search_terms": [self.search_terms_from_path(str(entry.path)), _short_hash(entry)],
                "local_preview": f"{stem}.{shared.opts.samples_format}",
                "metadata": metadata,
                "sort_keys": {"default": index, **self.get_sort_keys(str(entry.path))},
                "sd_version": card.family or "Unknown",
                "crucible": card,
            }
            self.read_user_metadata(item)
            item["prompt"] = _prompt(name, item["user_metadata"])
            negative = item["user_metadata"].get("negative text")
            item["negative_prompt"] = json.dumps(f"({negative}:1)" if negative else "")
            return item

        def read_user_metadata(self, item: dict[str, Any], use_cache: bool = True) -> None:
            # The WebUI's own reading stops the whole page at a stem.json that holds no object.
            entry = session.library.find(item["name"])
            item["user_metadata"] = {} if entry is None else _readable_user(entry)

        def create_item_html(
            self, tabname: str, item: dict[str, Any], template: str | None = None
        ) -> Any:
            made = super().create_item_html(tabname, item, template)
            card = item.get("crucible")
            return _with_badges(made, card) if isinstance(made, str) and card else made

        def allowed_directories_for_previews(self) -> list[str]:
            return [str(folder) for folder in session.folders]

        def create_user_metadata_editor(self, ui: Any, tabname: str) -> Any:
            from extensions_lib.ui.webui_editor import make_editor

            return make_editor(session, self, ui, tabname)

    return NetworksPage()


def show_page(session: Session) -> None:
    """Puts our page in the place of the builtin one, or adds it where there is none."""
    from modules import ui_extra_networks

    page, pages = make_page(session), ui_extra_networks.extra_pages
    names = [other.name for other in pages]
    place = names.index(page.name) if page.name in names else len(pages)
    pages.insert(place, page)
    pages[:] = [other for other in pages if other is page or other.name != page.name]
    ui_extra_networks.allowed_dirs.update(
        os.path.abspath(folder) for folder in page.allowed_directories_for_previews()
    )


def _family_of(shared: Any) -> str:
    """The loaded checkpoint's family; "" before one is loaded (asking must not load it)."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    families = (("is_sdxl", "SDXL"), ("is_sd2", "SD2"), ("is_sd1", "SD1"))
    return next((name for mark, name in families if getattr(model, mark, False)), "")


def readable_metadata(entry: Entry) -> dict[str, Any]:
    """The file's metadata, its JSON values as objects; {} for a broken file: its card says so."""
    try:
        found = entry.metadata
    except FileProblem:
        return {}
    read: dict[str, Any] = {}
    for key, value in found.items():
        read[key] = value
        if value[:1] == "{":
            with suppress(ValueError):  # some text that begins with a brace: shown as it is
                read[key] = json.loads(value)
    return read


def _short_hash(entry: Entry) -> str:
    """The empty text where only reading the whole file would tell: no page waits for that."""
    return short_network_hash(entry.known_hash or "")


def _readable_user(entry: Entry) -> dict[str, Any]:
    """What the person noted; {} for a broken stem.json: the card and the editor say so."""
    try:
        return dict(entry.user)
    except FileProblem:
        return {}


def _prompt(name: str, user: dict[str, Any]) -> str:
    """What a click on the card adds, as the JavaScript expression that the WebUI expects."""
    stated = user.get("preferred weight")
    weight = stated if stated and isinstance(stated, int | float) else None
    parts = [
        json.dumps(f"<lora:{name}:"),
        # Only a number: the expression runs in the page, and a stem.json may come from anyone.
        "opts.extra_networks_default_multiplier" if weight is None else json.dumps(weight),
        json.dumps(">"),
    ]
    if user.get("activation text"):
        parts.append(json.dumps(f" {user['activation text']}"))
    return " + ".join(parts)


def _with_badges(card_html: str, card: Card) -> str:
    """The WebUI's card with our badges inside, and a class where it cannot serve."""
    start = card_html.find(">") + 1  # of the opening tag: its attributes hold no bare ">"
    badges = "".join(f"<b>{html.escape(text)}</b>" for text in (card.kind, card.family) if text)
    why = card.problem or card.why or card.note
    said = f'<span class="crucible-why">{html.escape(why)}</span>' if why else ""
    mark = f'<span class="crucible-badges crucible-on-card">{badges}{said}</span>'
    return card_html[:start] + mark + card_html[start:]


def add_routes(session: Session, app: Any) -> None:
    """`GET /sdapi/v1/loras` and `POST /sdapi/v1/refresh-loras`, in place of the builtin ones."""

    def loras() -> list[dict[str, Any]]:
        return [
            {
                "name": session.library.tag_name(entry),
                "alias": entry.alias or entry.name,
                "path": str(entry.path),
                "metadata": readable_metadata(entry),
            }
            for entry in session.library.entries
        ]

    def refresh_loras() -> None:
        session.library.refresh()

    routes = (("/sdapi/v1/loras", loras, "GET"), ("/sdapi/v1/refresh-loras", refresh_loras, "POST"))
    paths = [path for path, _, _ in routes]
    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", None) not in paths]
    for path, answer, method in routes:
        app.add_api_route(path, answer, methods=[method])


def name_by_hash(session: Session, fields: dict[str, Any]) -> None:
    """Pasted infotext: tags of networks that are called otherwise here take the name here."""
    hashes = read_hashes(str(fields.get("Lora hashes") or ""))
    if not hashes or "Prompt" not in fields:
        return
    library = session.library

    def name_of(short: str) -> str | None:
        entry = library.find_hash(short)
        return None if entry is None else library.tag_name(entry)

    fields["Prompt"] = rename_by_hash(fields["Prompt"], hashes, name_of)
