"""The tagger in a WebUI: its REST routes, under the WebUI's own rules of who may ask."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from extensions_lib.api.tagger import Service
from extensions_lib.tagging.pool import Pool

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


def app_started(_: Any, app: Any) -> None:
    """The server stands. Without `--api` the WebUI answers no programs, and neither do we."""
    from extensions_lib.api.auth import host_dependencies
    from extensions_lib.api.tagger import add_routes

    dependencies = host_dependencies(app)
    if dependencies is not None:
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


def script_unloaded() -> None:
    """The page is being reloaded: the models' memory is given back."""
    pool().unload()
