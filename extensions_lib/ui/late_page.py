"""A page of gradio below a WebUI's own, which is built when somebody first opens it.

A tab of hundreds of fields costs a WebUI half a second at its start, at each reload of the UI, and
in each browser. As a page of its own, shown in a frame, it costs nothing until it is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from extensions_lib.ui.own_page import Receive, Scope, Send

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

AT_ONCE = 16  # events of one page that may run side by side


class LatePage:
    """ASGI application: the one that `build` returns, built in a thread at the first request.

    A build that fails is told to whoever asked, raised, and tried again at the next request.
    """

    def __init__(self, build: Callable[[], FastAPI]) -> None:
        self._build = build
        self._lock = asyncio.Lock()
        self._app: FastAPI | None = None
        self._alive: Any = None  # what keeps the events of the page running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from fastapi.responses import PlainTextResponse

        try:
            app = await self._ready()
        except Exception as problem:
            if scope["type"] == "http":
                told = f"This tab could not be built; the console says where.\n\n{problem!r}"
                await PlainTextResponse(told, status_code=500)(scope, receive, send)
            raise
        await app(scope, receive, send)

    async def _ready(self) -> FastAPI:
        from fastapi.concurrency import run_in_threadpool

        async with self._lock:
            if self._app is None:
                app = await run_in_threadpool(self._build)
                self._alive = app.router.lifespan_context(app)
                await self._alive.__aenter__()
                self._app = app
            return self._app


def framed_page(
    title: str,
    build: Callable[[gr.Blocks], Any],
    add_routes: Callable[[FastAPI], None],
    theme: Any = None,
    lang: str = "",
    own_url: str | None = None,
    checked: bool = True,
    styles: Sequence[str] = (),
) -> FastAPI:
    """A page with what `build` makes inside it, and the routes that its scripts ask.

    `own_url`: where this program reaches the page, which gradio 3 asks to run its events;
    `checked`: whether it trusts only a certificate that somebody has signed; `styles`: addresses
    of further style sheets, relative to the page.
    """
    import gradio as gr
    from fastapi import FastAPI

    from extensions_lib.ui import compat
    from extensions_lib.ui.own_page import OwnPage, add_file_routes, page_head

    page = gr.Blocks(
        title=title, theme=theme, analytics_enabled=False, **compat.tidied(3600, 24 * 3600)
    )
    with page, gr.Column(elem_id="crucible-frame"):
        build(page)
    compat.in_line(page, AT_ONCE)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_file_routes(app)
    add_routes(app)
    app = compat.mounted(app, page, own_url, checked)
    app.add_middleware(OwnPage, head=page_head(lang, title, styles))
    return app
