"""The page of the standalone host: tabs, theme, routes; served on this machine alone by default."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

    from extensions_lib.hosts.standalone import StandaloneHost
    from extensions_lib.library import Entry
    from extensions_lib.ui.generate_tab import Room
    from extensions_lib.ui.tagger_room import TaggerRoom
    from extensions_lib.ui.toolbox_room import ToolboxRoom
    from extensions_lib.ui.training_room import TrainingRoom

ROOT = Path(__file__).resolve().parents[2]
PORTS_TRIED = 50
FONT = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace")


@dataclass(frozen=True)
class Options:
    """How to serve; `port` None is 7861 or the next free one."""

    port: int | None = None
    listen: bool = False
    browser: bool = True
    checkpoint: Path | None = None
    lang: str = ""
    data: Path = ROOT  # holds models/, outputs/ and cache/
    threads: int | None = None
    originals: float | None = None  # GB of clean weights that stay on the device
    started: float | None = None  # time.time() of the start, for "ready in"
    api_auth: str = ""  # user:password of programs that ask the REST routes


def build_page(
    options: Options, tagger: TaggerRoom | None = None, training: TrainingRoom | None = None,
    host: StandaloneHost | None = None, toolbox: ToolboxRoom | None = None,
) -> tuple[gr.Blocks, Room]:  # fmt: skip
    """The tabs and the room they work with. Loads gradio, but no torch."""
    import gradio as gr

    from extensions_lib.ui import compat
    from extensions_lib.ui.generate_tab import Room, build_generate_tab
    from extensions_lib.ui.networks_panel import Shelf
    from extensions_lib.ui.pictures import OutputFolder
    from extensions_lib.ui.studio import Studio
    from extensions_lib.ui.tagger_tab import build_tagger_tab
    from extensions_lib.ui.toolbox_room import toolbox_room
    from extensions_lib.ui.toolbox_tab import build_toolbox_tab
    from extensions_lib.ui.training_tab import build_training_tab

    host = host or new_host(options)
    tagger = tagger or tagger_room(options)
    training = training or training_room(options, host, tagger)
    toolbox = toolbox or toolbox_room(options.data, host, strangers=options.listen)

    def checkpoints() -> list[Path]:
        named = [options.checkpoint.absolute()] if options.checkpoint else []
        return list(dict.fromkeys([*named, *host.checkpoints()]))

    outputs = OutputFolder(options.data / "outputs")
    room = Room(Studio(host), Shelf(host.library), outputs, checkpoints)
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.slate,
        font=FONT,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_border_color="*primary_600",
        slider_color="*primary_500",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_600",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*primary_600",
        body_text_color_subdued="*neutral_500",  # on white, contrast enough to be read
        input_border_color_focus="*primary_400",
        input_shadow_focus="0 0 0 3px *primary_100",
        input_shadow_focus_dark="0 0 0 3px *primary_900",
    )
    page = gr.Blocks(
        title="Crucible", theme=theme, analytics_enabled=False, **compat.tidied(3600, 24 * 3600)
    )
    with page, gr.Tabs(elem_id="crucible-tabs"):
        with gr.Tab("Generate", elem_id="crucible-tab-generate"):
            build_generate_tab(room, page)
        with gr.Tab("Tagger", elem_id="crucible-tab-tagger"):
            build_tagger_tab(tagger, page)
        with gr.Tab("Training", elem_id="crucible-tab-training"):
            build_training_tab(training, page)
        with gr.Tab("Toolbox", elem_id="crucible-tab-toolbox"):
            build_toolbox_tab(toolbox, page)
    compat.in_line(page, 4)
    return page, room


def build_app(options: Options) -> FastAPI:
    """The page with its files, as an ASGI application."""
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, Response

    from extensions_lib.ui.completions import add_route, host_sources
    from extensions_lib.ui.own_page import OwnPage, add_file_routes, page_head
    from extensions_lib.ui.toolbox_room import toolbox_room

    head = page_head(options.lang)
    host, tagger = new_host(options), tagger_room(options)
    training = training_room(options, host, tagger)
    toolbox = toolbox_room(options.data, host, strangers=options.listen)
    page, room = build_page(options, tagger, training, host, toolbox)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    add_file_routes(app)

    @app.get("/crucible/preview/{key}")
    def preview(key: str) -> Response:
        path = room.shelf.preview(key)
        return FileResponse(path) if path and path.is_file() else Response(status_code=404)

    add_network_routes(app, room)
    add_route(app, lambda: host_sources(host))
    add_tagger_routes(app, options, tagger)
    add_training_routes(app, options, training)
    toolbox.add_routes(app, options.api_auth)
    outputs = [str(room.outputs.root.absolute())]
    app = gr.mount_gradio_app(app, page, path="/", allowed_paths=outputs, show_error=True)
    app.add_middleware(OwnPage, head=head)
    return app


def new_host(options: Options) -> StandaloneHost:
    """The host, which has loaded nothing yet."""
    from extensions_lib.hosts.standalone import StandaloneHost

    return StandaloneHost(
        options.checkpoint, options.data, threads=options.threads, originals=options.originals
    )


def training_room(options: Options, host: StandaloneHost, tagger: TaggerRoom) -> TrainingRoom:
    """What the tab and REST work with; runs are in the host that makes the pictures."""
    from extensions_lib.ui.training_room import TrainingRoom

    def place() -> Any:
        from extensions_lib.hosts.standalone.place import StandalonePlace

        return StandalonePlace(host)

    def base() -> str:
        path = checkpoint()
        return path.name if path else ""

    def checkpoint() -> Path | None:
        try:
            return host.checkpoint
        except CrucibleError:  # there is none yet
            return None

    return TrainingRoom(
        place, base, checkpoint, options.data / "outputs", tagger.path, tagger.links,
        strangers=options.listen,
    )  # fmt: skip


def add_training_routes(app: FastAPI, options: Options, training: TrainingRoom) -> None:
    """Training by REST, and what the script of its tab asks."""
    from extensions_lib.api.auth import basic_dependencies
    from extensions_lib.api.training import add_routes

    add_routes(app, training.service, dependencies=basic_dependencies(options.api_auth))
    training.add_page_routes(app)


def tagger_room(options: Options) -> TaggerRoom:
    """What the tab and REST work with: models, loaded at the first order, and folders."""
    from extensions_lib.tagging.pool import Pool
    from extensions_lib.ui.tagger_room import TaggerRoom

    cache = options.data / "cache"
    pool = Pool(options.data / "models", cache, options.threads)
    return TaggerRoom(pool, cache, options.data, options.data if options.listen else None)


def add_tagger_routes(app: FastAPI, options: Options, tagger: TaggerRoom) -> None:
    """The tagger's REST, and the pictures of its tab."""
    from extensions_lib.api.auth import basic_dependencies
    from extensions_lib.api.tagger import Service, add_routes
    from extensions_lib.ui.tagger_links import add_route

    add_routes(app, Service(tagger.pool), basic_dependencies(options.api_auth))
    add_route(app, tagger.links)


def add_network_routes(app: FastAPI, room: Room) -> None:
    """What the popup about a network asks for: pieces of HTML, errors among them."""
    from fastapi.responses import HTMLResponse

    from extensions_lib.ui import network_info as info
    from extensions_lib.ui.pieces import messages

    def answer(file: str, told: Callable[[Entry], str]) -> HTMLResponse:
        entry = room.shelf.entry(file)
        if entry is None:
            page = messages([info.GONE.format(file=Path(file).name)], "error")
        else:
            page = told(entry)
        # JSON can spell half a character, which no encoding has.
        return HTMLResponse(page.encode("utf-8", "replace"))

    @app.get(info.ABOUT_ROUTE)
    def network(file: str, checkpoint: str = "") -> HTMLResponse:
        # Only a checkpoint that the page offers is opened.
        chosen = next((path for path in room.checkpoints() if str(path) == checkpoint), None)
        return answer(file, lambda entry: info.about_html(info.about(entry, chosen)))

    @app.get(info.HASHES_ROUTE)
    def hashes(file: str) -> HTMLResponse:
        return answer(file, info.hashes_html)


def bound_socket(options: Options) -> socket.socket:
    """A listening place: the asked port, or 7861 and up.

    Raises: CrucibleError if the asked port is taken or none is free.
    """
    address = "0.0.0.0" if options.listen else "127.0.0.1"
    first = options.port or 7861
    ports = [first] if options.port else range(first, first + PORTS_TRIED)
    for port in ports:
        place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name != "nt":
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((address, port))
            place.listen()  # until one listens, another program may bind it too
        except OSError:
            place.close()
            continue
        return place
    if options.port:
        raise CrucibleError(f"Port {first} is taken; choose another by --port, or leave it out.")
    raise CrucibleError(f"The ports {first} to {ports[-1]} are all taken; name a free one: --port.")


def can_open_browser() -> bool:
    """False on a Linux without a screen, where a text browser would take over the terminal."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform in ("win32", "darwin") or bool(screen)


def serve(options: Options) -> int:
    """Serves the page until Ctrl+C; says on stderr when it is ready. Returns the exit status."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    started = options.started or time.time()
    place = bound_socket(options)
    import uvicorn

    app = build_app(options)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    address = f"http://127.0.0.1:{place.getsockname()[1]}"

    def announce() -> None:
        while not server.started:
            time.sleep(0.02)
            if server.should_exit:
                return
        print(f"ready at {address} in {time.time() - started:.1f} s", file=sys.stderr, flush=True)
        if options.listen:
            print("open to the whole network (--listen)", file=sys.stderr, flush=True)
        if options.browser and can_open_browser():
            webbrowser.open(address)

    threading.Thread(target=announce, daemon=True).start()
    server.run(sockets=[place])
    return 0
