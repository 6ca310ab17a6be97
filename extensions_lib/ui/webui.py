"""What the WebUI calls back: one function for each of its moments.

The session outlives a reload of the page: modules stay, scripts are run anew.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extensions_lib.hosts.base import Host
    from extensions_lib.hosts.webui import Session, WebUI

ROOT = Path(__file__).resolve().parents[2]


def _host() -> WebUI:
    if find_spec("modules_forge"):
        from extensions_lib.hosts import forge

        return forge.Forge()
    from extensions_lib.hosts import a1111

    return a1111.A1111()


@cache
def session() -> Session:
    """The one session of this program."""
    from modules import shared

    from extensions_lib.hosts.webui import Session

    options = shared.cmd_opts
    named = [getattr(options, name, None) for name in ("lora_dir", "lyco_dir_backcompat")]
    folders = list(dict.fromkeys(Path(each).absolute() for each in named if each))
    return Session(_host(), [f for f in folders if f.is_dir()] or folders[:1], ROOT / "cache")


@cache
def host() -> Host:
    """This WebUI as a Host: for whoever needs its model alone, or pictures of it."""
    from extensions_lib.hosts.webui_host import WebUIHost

    return WebUIHost(session())


def checkpoint() -> Path | None:
    """The checkpoint that the settings name; it may not be loaded yet."""
    from modules import sd_models, shared

    info = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    return None if info is None else Path(info.filename)


_page_announced = False  # and not one component of it built yet


def before_ui() -> None:
    """A page is about to be built; the builtin extension may register itself after this call."""
    global _page_announced
    from extensions_lib.ui.webui_axes import add_axes

    _page_announced = True
    add_axes()


def before_component(*_: Any, **__: Any) -> None:
    """The first component of a page: all are registered now, and the cards are not built yet."""
    global _page_announced
    if _page_announced:
        _page_announced = False
        if _wanted():
            from extensions_lib.hosts.webui import take_over
            from extensions_lib.ui.webui_networks import show_page

            take_over(session())
            show_page(session())


def _wanted() -> bool:
    from modules import shared

    return bool(getattr(shared.opts, "crucible_networks", True))


def app_started(_: Any, app: Any) -> None:
    """The server stands; without a page (`--nowebui`) this is the first moment to take over."""
    from modules import shared

    from extensions_lib.hosts.webui import take_over
    from extensions_lib.ui.completions import add_route, webui_sources
    from extensions_lib.ui.webui_control import control
    from extensions_lib.ui.webui_networks import add_routes

    if _wanted():
        take_over(session())
        add_routes(session(), app)
        lllites = control().files
        add_route(app, webui_sources(session(), shared.cmd_opts, ROOT / "cache", lllites))
    _introduce()


@cache
def _introduce() -> None:
    """The one line of the console, at the start and not again when the page is reloaded."""
    from extensions_lib import __version__

    places = ", ".join(str(folder) for folder in session().folders)
    work = f"networks from {places}" if _wanted() else "networks are left to the builtin handler"
    print(f"Crucible {__version__}: {work}")


def model_loaded(sd_model: Any) -> None:
    """Another checkpoint is in memory, maybe in the modules of the one before."""
    session().model_loaded(sd_model)


def step_begins(params: Any) -> None:
    """The WebUI is about to ask the UNet."""
    session().step(params)


def infotext_pasted(_: str, fields: dict[str, Any]) -> None:
    """A picture's parameters were pasted."""
    from extensions_lib.ui.webui_networks import name_by_hash

    name_by_hash(session(), fields)


def script_unloaded() -> None:
    """The page is being reloaded."""
    session().park()


def settings() -> None:
    """Our section of the Settings tab."""
    from modules import shared

    section = ("crucible", "Crucible")
    shared.opts.add_option(
        "crucible_networks",
        shared.OptionInfo(
            True, "Crucible applies the networks of <lora:…> and <lyco:…> tags", section=section
        )
        .info("off: the builtin Lora extension does; takes effect after Reload UI")
        .needs_reload_ui(),
    )
    if find_spec("modules_forge"):
        return  # Forge's own memory management says where weights lie
    from gradio import Number

    shared.opts.add_option(
        "crucible_originals_gb",
        shared.OptionInfo(
            -1,
            "GB of clean weights that stay on the GPU while networks are in force",
            Number,
            section=section,
        ).info("the rest waits in pinned RAM; -1: as long as there is room"),
    )
