"""The few places where gradio 3.41 (A1111), 4.40 (Forge) and 4.44 (standalone) differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

VERSION = tuple(int(part) for part in gr.__version__.split(".")[:2])


def on_browser(code: str) -> dict[str, Any]:
    """The keyword that runs a JavaScript function with an event: `js`, in gradio 3 `_js`."""
    return {"js": code} if VERSION >= (4, 0) else {"_js": code}


def at_once() -> dict[str, Any]:
    """Keywords for an event that does not wait in line and shows no spinner."""
    return {"queue": False, "show_progress": "hidden"}


def only_last() -> dict[str, Any]:
    """Keyword for an event of which, while one is under way, only the newest matters."""
    return {"trigger_mode": "always_last"} if VERSION >= (4, 0) else {}


def any_value() -> dict[str, Any]:
    """Keyword of a list to choose several from that takes other values too; gradio 3 does."""
    return {"allow_custom_value": True} if VERSION >= (4, 0) else {}


def every_one() -> dict[str, Any]:
    """Keyword for an event that may come again before it has been answered; gradio 3 lets it."""
    return {"trigger_mode": "multiple"} if VERSION >= (4, 0) else {}


def side_by_side(limit: int) -> dict[str, Any]:
    """Keyword that lets several windows be inside one event (gradio 3 is told so at `queue`)."""
    return {"concurrency_limit": limit} if VERSION >= (4, 0) else {}


def lossless() -> dict[str, Any]:
    """Keyword that keeps a gallery from recompressing pictures; gradio 3 never did."""
    return {"format": "png"} if VERSION >= (4, 0) else {}


def from_files() -> dict[str, Any]:
    """Keyword of a picture that comes from a file or the clipboard, not from a camera."""
    return {"sources": ["upload", "clipboard"]} if VERSION >= (4, 0) else {"source": "upload"}


def tidied(every: int, older: int) -> dict[str, Any]:
    """Keyword of a page that deletes its copies of files; gradio 3 leaves them to the system."""
    return {"delete_cache": (every, older)} if VERSION >= (4, 0) else {}


def in_line(page: gr.Blocks, at_once: int) -> None:
    """Lets the events of a page wait in line, so many of each (gradio 3: in all) running."""
    if VERSION >= (4, 0):
        page.queue(default_concurrency_limit=at_once)
    else:
        page.queue(concurrency_count=at_once)


def named(choices: Sequence[tuple[str, str]]) -> list[Any]:
    """Choices of a dropdown, as (name, value); gradio 3.41 shows the values themselves."""
    return list(choices) if VERSION >= (4, 0) else [value for _, value in choices]


def window_of(request: gr.Request) -> str:
    """Which of the open windows an event comes from; gradio 3 tells no more than the computer."""
    told = request.session_hash if VERSION >= (4, 0) else request.client.host
    return str(told)


def mounted(app: Any, page: gr.Blocks, own_url: str | None, checked: bool) -> Any:
    """The page at the root of an application; `own_url` is where gradio 3 reaches it itself.

    `checked`: only by a certificate that somebody has signed.
    """
    if VERSION >= (4, 0):
        return gr.mount_gradio_app(app, page, path="/", show_error=True)
    page.ssl_verify = checked
    return gr.mount_gradio_app(app, page, path="/", gradio_api_url=own_url)
