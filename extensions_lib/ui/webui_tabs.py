"""Our tabs in a WebUI, each a frame with a page of its own that is built when it is first opened.

Whoever has a page's address was shown the WebUI, which asks for its own passwords.
"""

from __future__ import annotations

import html
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from extensions_lib.ui import webui_tagger, webui_toolbox, webui_training

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

_TOKEN = secrets.token_urlsafe(16)
_ASSETS = "/webui-assets"


@dataclass(frozen=True)
class Tab:
    """`build` makes the tab inside a page; its scripts ask what `add_page_routes` adds there.

    `add_api` adds the routes for programs, under the WebUI's own rules of who may ask.
    """

    name: str
    label: str
    build: Callable[[gr.Blocks], Any]
    add_page_routes: Callable[[FastAPI], None]
    add_api: Callable[[FastAPI, list[Any]], None]

    @property
    def path(self) -> str:
        """Where the page lies below the WebUI's, with a slash at both ends."""
        return f"/crucible/page/{_TOKEN}/{self.name}/"


TABS = tuple(
    Tab(name, label, at.build, at.add_page_routes, at.add_api)
    for name, label, at in (
        ("tagger", "Tagger", webui_tagger),
        ("training", "Training", webui_training),
        ("toolbox", "Toolbox", webui_toolbox),
    )
)


def tabs() -> list[tuple[Any, str, str]]:
    """Our tabs of the WebUI's page; javascript/frames.js opens what is in them."""
    import gradio as gr

    made = []
    for tab in TABS:
        address = html.escape(f".{tab.path}", quote=True)
        with gr.Blocks(analytics_enabled=False) as page:
            gr.HTML(
                f'<iframe class="crucible-frame" title="{tab.label}" data-page="{address}"'
                ' allow="clipboard-read; clipboard-write; fullscreen"></iframe>'
            )
        made.append((page, tab.label, f"crucible_{tab.name}"))
    return made


def app_started(demo: Any, app: Any) -> None:
    """The server stands. Without `--api` the WebUI answers no programs, and neither do we."""
    from extensions_lib.api.auth import host_dependencies
    from extensions_lib.ui.late_page import LatePage

    dependencies = host_dependencies(app)
    for tab in TABS:
        if demo is not None:
            app.mount(tab.path.rstrip("/"), LatePage(partial(_page, tab, demo, app)))
        if dependencies is not None:
            tab.add_api(app, dependencies)


def _page(tab: Tab, demo: Any, webui: FastAPI) -> FastAPI:
    from modules import shared

    from extensions_lib.ui.late_page import framed_page

    theme = getattr(shared, "gradio_theme", None)
    local = getattr(demo, "local_url", None)
    own_url = f"{local.rstrip('/')}{tab.path}" if local else None
    checked = bool(getattr(demo, "ssl_verify", True))
    return framed_page(
        tab.label, tab.build, tab.add_page_routes, theme, _language(), own_url, checked,
        _fonts(tab, webui.routes),
    )  # fmt: skip


def _fonts(tab: Tab, routes: Iterable[Any]) -> list[str]:
    """Where the WebUI's theme has its font from, as its own page does; seen from the tab's page."""
    if all(getattr(route, "path", None) != _ASSETS for route in routes):
        return []
    up = "/".join([".."] * (tab.path.count("/") - 1))
    return [f"{up}{_ASSETS}/css/sourcesanspro.css"]


def _language() -> str:
    """The translation of ours that suits the one that the WebUI is set to."""
    from modules import shared

    chosen = str(getattr(shared.opts, "localization", None) or "").lower().replace("-", "_")
    traditional = any(word in chosen for word in ("tw", "hk", "hant"))
    return "zh_CN" if chosen.startswith("zh") and not traditional else "en"


def script_unloaded() -> None:
    """The page is being reloaded: the taggers' memory is given back."""
    webui_tagger.unload()


settings = webui_tagger.settings
