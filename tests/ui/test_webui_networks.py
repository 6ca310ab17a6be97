"""What Crucible puts into a WebUI's own places, without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extensions_lib.ui import webui_axes
from extensions_lib.ui.cards import Card
from extensions_lib.ui.webui_networks import (
    _with_badges,
    add_routes,
    name_by_hash,
    readable_metadata,
)
from tests.hosts.conftest import tiny_lora


@pytest.fixture
def session(tmp_path: Path) -> Any:
    from extensions_lib.library import Library

    tiny_lora(tmp_path / "here.safetensors", 1)
    (tmp_path / "broken.safetensors").write_text("no network")
    library = Library([tmp_path])
    library.refresh()
    return SimpleNamespace(library=library, folders=[tmp_path])


def test_a_pasted_tag_takes_the_name_that_the_file_has_here(session: Any) -> None:
    entry = session.library.find("here")
    fields = {"Prompt": "a <lora:there:0.5> <lora:else:1>",
              "Lora hashes": f"there: {entry.short_hash}, else: 000000000000"}  # fmt: skip
    name_by_hash(session, fields)
    assert fields["Prompt"] == "a <lora:here:0.5> <lora:else:1>"
    untouched = {"Prompt": "a <lora:there:0.5>"}
    name_by_hash(session, untouched)
    assert untouched == {"Prompt": "a <lora:there:0.5>"}


def test_json_in_metadata_is_read_and_other_text_is_kept(session: Any) -> None:
    entry = session.library.find("here")
    entry.metadata = {"a": '{"b": 1}', "c": "{not json", "d": "text"}
    assert readable_metadata(entry) == {"a": {"b": 1}, "c": "{not json", "d": "text"}
    assert readable_metadata(session.library.find("broken")) == {}


def test_badges_lie_inside_the_card_and_are_escaped() -> None:
    card = Card("x", kind="<b>", family="SDXL", why="made for SDXL; this checkpoint is SD1")
    made = _with_badges('<div class="card" onclick="f(&gt;)"><span>x</span></div>', card)
    assert made.startswith('<div class="card" onclick="f(&gt;)"><span class="crucible-badges')
    assert "&lt;b&gt;" in made and "made for SDXL" in made and made.endswith("<span>x</span></div>")


def test_the_routes_take_the_place_of_others(session: Any) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    app.add_api_route("/sdapi/v1/loras", lambda: ["builtin"], methods=["GET"])
    add_routes(session, app)
    routes = [r for r in app.router.routes if getattr(r, "path", "") == "/sdapi/v1/loras"]
    assert len(routes) == 1
    answered: Any = routes[0]
    assert {each["name"] for each in answered.endpoint()} == {"here", "broken"}


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ("0.6", "<lora:a:0.6> <lora:b:0.6>"),
        (" b: 0.6", "<lora:a:1> <lora:b:0.6>"),
    ],
)
def test_the_axis_weighs_all_networks_or_one(value: str, prompt: str) -> None:
    p = SimpleNamespace(prompt="<lora:a:1> <lora:b:1>")
    webui_axes.set_weight(p, value, [])
    assert p.prompt == prompt
    with pytest.raises(RuntimeError, match="much"):
        webui_axes._check(p, ["much"])
