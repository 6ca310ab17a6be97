"""Training in a WebUI: its tab, and REST routes under the WebUI's own rules of who may ask.

A run outlives a reload of the page, as this module does.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.ui import webui, webui_tagger

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

    from extensions_lib.models.place import Place
    from extensions_lib.ui.training_room import TrainingRoom


@cache
def room() -> TrainingRoom:
    """What the tab and REST work with; runs are below the WebUI's own outputs."""
    from modules import paths

    from extensions_lib.ui.training_room import TrainingRoom

    tagger = webui_tagger.room()
    return TrainingRoom(
        _place,
        _base,
        webui.checkpoint,
        Path(paths.data_path) / "outputs",
        tagger.path,
        tagger.links,
        strangers=tagger.only_below is not None,
    )


def _place() -> Place:
    from extensions_lib.hosts.webui_host import WebUIHost
    from extensions_lib.hosts.webui_place import WebUIPlace

    return WebUIPlace(WebUIHost(webui.session()))


def _base() -> str:
    """The checkpoint that the settings name; it may not be loaded yet."""
    from modules import shared

    return str(getattr(shared.opts, "sd_model_checkpoint", None) or "")


def build(page: gr.Blocks) -> None:
    """Builds our tab inside a page."""
    from extensions_lib.ui.training_tab import build_training_tab

    build_training_tab(room(), page)


def add_page_routes(app: FastAPI) -> None:
    """Adds what the tab's script asks."""
    room().add_page_routes(app)
    # its pictures are the tagger's
    webui_tagger.add_page_routes(app)


def add_api(app: FastAPI, dependencies: list[Any]) -> None:
    """Adds the routes for programs; `dependencies` say who may ask."""
    from extensions_lib.api.training import add_routes

    add_routes(app, room().service, dependencies=dependencies)
