"""A page of gradio as we serve it: our scripts and style in its head, and nothing of elsewhere.

The page asks nothing of any other server: gradio's page names a script and fonts elsewhere, which
are taken out of it, and a content security policy forbids the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib import __version__
from extensions_lib.errors import CrucibleError

if TYPE_CHECKING:
    from fastapi import FastAPI

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = re.compile(
    r'\s*<link\s[^>]*rel="preconnect"[^>]*>|\s*<script[^>]*src="https?://[^>]*>\s*</script>'
    r'|\s*<meta (?:property="og:|name="twitter:)[^>]*>'
    # what a WebUI puts into every page of gradio in its program: its scripts, texts and styles
    r'|\s*<script[^>]*src="file=[^>]*>\s*</script>|\s*<link[^>]*href="file=[^>]*>'
    r"|\s*<script[^>]*>\s*(?:window\.localization\b|set_theme\().*?</script>",
    re.DOTALL,
)
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class OwnPage:
    """ASGI middleware: the page itself without foreign addresses, with our script and style."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], head: str) -> None:
        self.app = app
        self.head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything through; only answers that are HTML are held back and rewritten."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        body = b""

        async def rewriting(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start":
                message["headers"] = with_policy(message["headers"])
                if is_html(message["headers"]):
                    held = message
                    return
            elif held is not None:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                page = self.rewritten(body.decode("utf-8")).encode("utf-8")
                held["headers"] = with_length(held["headers"], len(page))
                await send(held)
                message = {"type": "http.response.body", "body": page}
            await send(message)

        await self.app(scope, receive, rewriting)

    def rewritten(self, page: str) -> str:
        """The page with our head in front of gradio's scripts."""
        page = FOREIGN.sub("", page)
        return (
            page.replace("</title>", f"</title>{self.head}", 1)
            if "</title>" in page
            else (page.replace("<head>", f"<head>{self.head}", 1))
        )


Headers = list[tuple[bytes, bytes]]


def is_html(headers: Headers) -> bool:
    """True if the answer is a page."""
    return any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in headers)


def with_policy(headers: Headers) -> Headers:
    """The headers and the content security policy."""
    return [*headers, (b"content-security-policy", POLICY.encode("ascii"))]


def with_length(headers: Headers, length: int) -> Headers:
    """The headers with another content length."""
    kept = [(k, v) for k, v in headers if k.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode("ascii"))]


def page_head(lang: str, title: str = "Crucible", styles: Sequence[str] = ()) -> str:
    """Our part of the page's head: what the script needs to know, the script, the styles.

    `styles` are addresses of further ones, such as that of a WebUI's font.
    """
    folder = ROOT / "localizations"
    texts = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")
    }
    if lang and lang != "en" and lang not in texts:
        known = ", ".join(["en", *sorted(texts)])
        raise CrucibleError(f"There is no translation named {lang!r}; choose one of {known}.")
    about = json.dumps({"version": __version__, "lang": lang, "texts": texts})
    about = about.replace("<", "\\u003c")
    stamp = f"{__version__}-{newest_change():x}"
    # Relative to the page, which may lie below another address.
    return (
        f"<title>{title}</title><script>window.crucible_page = {about};</script>"
        + "".join(f'<script src="crucible/{each.name}?{stamp}"></script>' for each in scripts())
        + f'<link rel="stylesheet" href="crucible/style.css?{stamp}">'
        + "".join(f'<link rel="stylesheet" href="{each}">' for each in styles)
        + '<link rel="icon" href="data:,">'
    )


def scripts() -> list[Path]:
    """The scripts of the page: those that a WebUI loads, in its order, then those of the tabs."""
    folder = ROOT / "javascript"
    return [*sorted(folder.glob("*.js")), *sorted((folder / "tabs").glob("*.js"))]


def newest_change() -> int:
    """Changes with scripts and style, so that no browser keeps old ones."""
    return max(path.stat().st_mtime_ns for path in (ROOT / "style.css", *scripts()))


def add_file_routes(app: FastAPI) -> None:
    """Adds the routes of what the head names."""
    from fastapi.responses import FileResponse, Response

    @app.get("/crucible/style.css", response_model=None)
    def style() -> Any:
        return FileResponse(ROOT / "style.css", media_type="text/css")

    @app.get("/crucible/{name}.js", response_model=None)
    def script(name: str) -> Any:
        path = next((each for each in scripts() if each.stem == name), None)
        found = path and FileResponse(path, media_type="text/javascript")
        return found or Response(status_code=404)
