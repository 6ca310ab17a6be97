"""The toolbox in a WebUI: its tab, and REST routes under the WebUI's own rules of who may ask."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.ui import webui, webui_tagger

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

    from extensions_lib.models.place import Place
    from extensions_lib.ui.toolbox_room import ToolboxRoom

ROOT = Path(__file__).resolve().parents[2]


@cache
def room() -> ToolboxRoom:
    """What the tab and REST work with: the WebUI's own folders and its checkpoint."""
    from modules import paths

    from extensions_lib.api.toolbox_orders import Desk
    from extensions_lib.ui.toolbox_room import ToolboxRoom

    below = webui_tagger.room().only_below
    base = Path(paths.data_path).absolute()
    return ToolboxRoom(Desk(base, _folders, webui.checkpoint, _place, ROOT / "cache", below))


def _folders(sort: str) -> list[Path]:
    """Where the WebUI looks for files of a sort: what its arguments name, and its usual folders."""
    from modules import paths, shared

    from extensions_lib.toolbox import sorts

    if sort not in sorts.PLACES:
        return []
    named = {
        sorts.NETWORK: ("lora_dir", "lyco_dir_backcompat"),
        sorts.CHECKPOINT: ("ckpt_dir", "ckpt_dirs"),
        sorts.VAE: ("vae_dir", "vae_dirs"),
        sorts.EMBEDDING: ("embeddings_dir",),
        sorts.HYPERNETWORK: ("hypernetwork_dir",),
        sorts.LLLITE: ("controlnet_dir",),
        sorts.CONTROLNET: ("controlnet_dir",),
    }
    found: list[Path] = []
    for name in named.get(sort, ()):
        told = getattr(shared.cmd_opts, name, None) or []
        found += [Path(each) for each in ([told] if isinstance(told, str) else told) if each]
    place = sorts.PLACES[sort]
    inside = place.removeprefix("models/")
    usual = Path(paths.data_path) / place if inside == place else Path(paths.models_path) / inside
    # the WebUI fills some arguments in by itself, also with folders that are not there
    there = [each.absolute() for each in found if each.is_dir()]
    return list(dict.fromkeys([*there, usual.absolute()]))


def _place() -> Place:
    from extensions_lib.hosts.webui_host import WebUIHost
    from extensions_lib.hosts.webui_place import WebUIPlace

    return WebUIPlace(WebUIHost(webui.session()))


def build(page: gr.Blocks) -> None:
    """Builds our tab inside a page."""
    from extensions_lib.ui.toolbox_tab import build_toolbox_tab

    build_toolbox_tab(room(), page)


def add_page_routes(app: FastAPI) -> None:
    """Adds what the tab's script asks."""
    room().add_page_routes(app)


def add_api(app: FastAPI, dependencies: list[Any]) -> None:
    """Adds the routes for programs; `dependencies` say who may ask."""
    from extensions_lib.api.toolbox import add_routes

    add_routes(app, room().service, dependencies=dependencies)
