"""The tagger in a WebUI: its tab, and REST routes under the WebUI's own rules of who may ask."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.api.tagger import Service
from extensions_lib.tagging.pool import Pool

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

    from extensions_lib.ui.tagger_room import TaggerRoom

ROOT = Path(__file__).resolve().parents[2]
SHAPE = "crucible_tagger_api"


@cache
def pool() -> Pool:
    """The loaded models of this program; taggers lie below the WebUI's models/."""
    from modules import paths

    return Pool(Path(paths.models_path), ROOT / "cache")


@cache
def service() -> Service:
    """What the routes work with; it waits for the WebUI's own work, as that waits for ours."""
    from modules import shared
    from modules.call_queue import queue_lock

    def shape() -> str:
        return str(getattr(shared.opts, SHAPE, "flat"))

    return Service(pool(), shape, lambda: queue_lock)


@cache
def room() -> TaggerRoom:
    """What the tab works with; as the routes, it waits for the WebUI's own work."""
    from modules import paths
    from modules.call_queue import queue_lock

    from extensions_lib.ui.tagger_room import TaggerRoom

    data = Path(paths.data_path)
    below = data if _open_to_strangers() else None
    return TaggerRoom(pool(), ROOT / "cache", data, below, lambda: queue_lock)


def _open_to_strangers() -> bool:
    """Whether people may reach the page who should not name folders of this machine."""
    from modules import shared

    told = shared.cmd_opts
    reachable = any(getattr(told, name, None) for name in ("listen", "share", "ngrok"))
    guarded = any(getattr(told, name, None) for name in ("gradio_auth", "gradio_auth_path"))
    return (reachable and not guarded) or bool(getattr(told, "hide_ui_dir_config", False))


def build(page: gr.Blocks) -> None:
    """Builds our tab inside a page."""
    from extensions_lib.ui.tagger_tab import build_tagger_tab

    build_tagger_tab(room(), page)


def add_page_routes(app: FastAPI) -> None:
    """Adds the pictures of the tab."""
    from extensions_lib.ui.tagger_links import add_route

    add_route(app, room().links)


def add_api(app: FastAPI, dependencies: list[Any]) -> None:
    """Adds the routes for programs; `dependencies` say who may ask."""
    from extensions_lib.api.tagger import add_routes

    add_routes(app, service(), dependencies)


def settings() -> None:
    """Our part of the Settings tab."""
    import gradio as gr
    from modules import shared

    shared.opts.add_option(
        SHAPE,
        shared.OptionInfo(
            "flat",
            "Answers of /tagger/v1/interrogate",
            gr.Radio,
            {"choices": ["flat", "nested"]},
            section=("crucible", "Crucible"),
        ).info("flat: one list of scores; nested: tags and ratings apart; both are in use"),
    )


def unload() -> None:
    """Gives the models' memory back."""
    if pool.cache_info().currsize:
        pool().unload()
