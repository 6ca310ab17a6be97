"""A model hub of one's own, on this machine, that can cut, spoil and refuse."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files` by "org/repo/path". `cut_after`: bytes after which a GET is cut, `cuts` times.

    `spoilt`: paths whose content arrives changed; `slow`: seconds before each 64 KB of content;
    `asked`: (method, path, Range) of all requests.
    """

    files: dict[str, bytes]
    cut_after: int = 0
    cuts: int = 0
    spoilt: set[str] = field(default_factory=set)
    slow: float = 0.0
    gated: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        hub = self
        self.over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """No connection is answered any more."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def gets(self) -> list[str]:
        """The Range of each GET of content, "" for none."""
        return [ranged for method, path, ranged in self.asked if method == "GET"]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path.strip("/")
        ranged = handler.headers.get("Range", "")
        self.asked.append((handler.command, path, ranged))
        if path.startswith("lfs/"):
            self._send(handler, path.removeprefix("lfs/"), ranged)
            return
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        key = f"{repo}/{name}"
        if self.gated:
            self._refuse(handler, 403, "GatedRepo")
        elif not any(each.startswith(repo + "/") for each in self.files):
            self._refuse(handler, 401, "RepoNotFound")
        elif revision not in ("main", COMMIT) or key not in self.files:
            self._refuse(handler, 404, "EntryNotFound")
        else:
            self._point(handler, key)

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
        handler.send_response(status)
        handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _point(self, handler: BaseHTTPRequestHandler, key: str) -> None:
        """As the hub does for large files: to another host, with what they are."""
        content = self.files[key]
        handler.send_response(302)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        handler.send_header("X-Linked-Size", str(len(content)))
        handler.send_header("Location", f"http://localhost:{self.port}/lfs/{key}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _send(self, handler: BaseHTTPRequestHandler, key: str, ranged: str) -> None:
        content = self.files[key]
        if key in self.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(ranged.removeprefix("bytes=").split("-")[0]) if ranged else 0
        part = content[start:]
        handler.send_response(206 if ranged else 200)
        handler.send_header("Content-Length", str(len(part)))
        if ranged:
            end = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", end)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if self.cuts and self.cut_after < len(part):
            self.cuts -= 1
            handler.wfile.write(part[: self.cut_after])
            handler.wfile.flush()
            handler.close_connection = True
            return
        for at in range(0, len(part), 1 << 16):
            if self.slow and self.over.wait(self.slow):
                return
            try:
                handler.wfile.write(part[at : at + (1 << 16)])
            except OSError:  # the reader went away
                return
