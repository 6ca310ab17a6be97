"""A page below another that is built when it is first asked for, under the gradio installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

BELOW = "/crucible/page/a-token/greeter/"
HOSTS_OWN = (
    '<script type="text/javascript">window.localization = {"a": "b"}</script>\n'
    '<script type="text/javascript" src="file=script.js?1.5"></script>\n'
    '<script type="text/javascript">set_theme("dark");</script>\n'
    '<link rel="stylesheet" property="stylesheet" href="file=style.css?1.5">'
)


def greeter(built: list[str]) -> Callable[[], Any]:
    """Builds a page with one event and one route, and notes that it did."""

    def build() -> Any:
        import gradio as gr

        from extensions_lib.ui.late_page import framed_page

        def inside(page: gr.Blocks) -> None:
            name = gr.Textbox("you", elem_id="name")
            said = gr.Textbox(elem_id="said")
            gr.Button("Greet", elem_id="greet").click(lambda who: f"Hello {who}", name, said)

        def add_routes(app: Any) -> None:
            app.add_api_route("/crucible/ping", lambda: "pong", methods=["GET"])

        built.append("page")
        return framed_page("Greeter", inside, add_routes)

    return build


def served_below(build: Callable[[], Any]) -> Any:
    """A client of an application with the page below its own."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from extensions_lib.ui.late_page import LatePage

    app = FastAPI()
    app.mount(BELOW.rstrip("/"), LatePage(build))
    return TestClient(app, raise_server_exceptions=False)


def test_built_once_and_not_before_it_is_asked_for() -> None:
    built: list[str] = []
    client = served_below(greeter(built))
    with client:
        assert client.get("/").status_code == 404
        assert not built
        page = client.get(BELOW)
        assert page.status_code == 200 and "<title>Greeter</title>" in page.text
        assert client.get(BELOW + "crucible/ping").json() == "pong"
        assert built == ["page"]


def test_all_that_the_page_names_lies_below_it() -> None:
    with served_below(greeter([])) as client:
        page = client.get(BELOW).text
        ours = re.findall(r'(?:src|href)="(crucible/[^"]+)"', page)
        assert len(ours) > 10
        for address in ours:
            assert client.get(BELOW + address).status_code == 200, address
        assert 'src="/' not in page and 'href="/' not in page
        assert "https://" not in re.sub(r"<script>window\.(crucible|gradio).*?</script>", "", page)


def test_its_events_run() -> None:
    with served_below(greeter([])) as client:
        config = client.get(BELOW + "config").json()
        assert str(config["root"]).rstrip("/").endswith(BELOW.rstrip("/"))
        order = {"fn_index": 0, "data": ["Ada"], "session_hash": "w"}
        answer = client.post(BELOW + "run/predict", json=order)
        assert answer.json()["data"] == ["Hello Ada"]


def test_nothing_of_the_page_around_it_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A WebUI puts its scripts into every page that gradio makes in its program."""
    import gradio as gr

    original = gr.routes.templates.TemplateResponse

    def crowded(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        answer.body = answer.body.replace(b"</head>", f"{HOSTS_OWN}</head>".encode())
        answer.init_headers()
        return answer

    monkeypatch.setattr(gr.routes.templates, "TemplateResponse", crowded)
    with served_below(greeter([])) as client:
        page = client.get(BELOW).text
        assert "window.crucible_page" in page
        for word in ("window.localization", "file=", "set_theme"):
            assert word not in page.replace("file=self", ""), word


def test_a_build_that_fails_is_told_and_tried_again() -> None:
    tries: list[str] = []
    build = greeter([])

    def at_second_try() -> Any:
        tries.append("try")
        if len(tries) == 1:
            raise OSError("No space left on device")
        return build()

    with served_below(at_second_try) as client:
        failed = client.get(BELOW)
        assert failed.status_code == 500 and "No space left on device" in failed.text
        assert client.get(BELOW).status_code == 200
