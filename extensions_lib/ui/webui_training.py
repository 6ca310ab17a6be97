"""Training in a WebUI: its tab, and REST routes under the WebUI's own rules of who may ask.

A run outlives a reload of the page, as this module does.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.ui import webui, webui_tagger

if TYPE_CHECKING:
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


def tabs() -> list[tuple[Any, str, str]]:
    """Our tab of the page."""
    import gradio as gr

    from extensions_lib.ui.training_tab import build_training_tab

    with gr.Blocks(analytics_enabled=False) as page:
        build_training_tab(room(), page)
    for block in page.blocks.values():
        # The browser keeps our fields; of several with one label the WebUI's own file keeps one.
        block.do_not_save_to_config = True
    return [(page, "Training", "crucible_training")]


def app_started(_: Any, app: Any) -> None:
    """The server stands. Without `--api` the WebUI answers no programs, and neither do we."""
    from extensions_lib.api.auth import host_dependencies
    from extensions_lib.api.training import add_routes

    room().add_page_routes(app)
    dependencies = host_dependencies(app)
    if dependencies is not None:
        add_routes(app, room().service, dependencies=dependencies)
