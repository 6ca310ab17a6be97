"""The Tagger tab as it is built: labels, translations, options as fields, folders, addresses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.pool import Pool
from extensions_lib.tagging.selection import Selection
from extensions_lib.ui.option_fields import OptionForm
from extensions_lib.ui.tagger_links import Links
from extensions_lib.ui.tagger_room import TaggerRoom
from extensions_lib.ui.tagger_tab import build_tagger_tab
from tests.ui.shown import labels, seen

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def room(tmp_path: Path) -> TaggerRoom:
    return TaggerRoom(Pool(ROOT / "models"), tmp_path / "cache", tmp_path)


def test_every_word_of_the_tab_is_translated(room: TaggerRoom) -> None:
    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    with gr.Blocks() as page:
        build_tagger_tab(room, page)
    shown = labels(page)
    for block in seen(page):
        if isinstance(block, gr.HTML):
            shown |= set(_words(str(block.value or "")))
    named = {text for text in shown if re.search("[A-Za-z]{2}", text)}
    assert len(named) > 100
    assert {text for text in named if text not in texts} <= {"1girl AND NOT hat"}


def _words(html: str) -> list[str]:
    """What people see of a piece of HTML: its texts, and those of some attributes."""
    html = re.sub(r"<code>.*?</code>", "", html)
    told = re.findall(r'(?:placeholder|title|aria-label)="([^"]+)"', html)
    return [*told, *(text.strip() for text in re.findall(r">([^<>]+)<", html))]


def test_a_form_gives_back_what_it_began_with() -> None:
    with gr.Blocks():
        form = OptionForm(Selection, "x", {"general": 0.4})
        form.rest()
    assert form.read(form.defaults()) == Selection(general=0.4)
    values = dict(zip(form.fields, form.defaults(), strict=True))
    values |= {"max_tags": "12", "exclude": "hat, smile", "character": ""}
    made = form.read(list(values.values()))
    assert (made.max_tags, made.exclude, made.character) == (12, ("hat", "smile"), None)
    with pytest.raises(CrucibleError, match="max_tags: takes a whole number"):
        form.read(list({**values, "max_tags": "many"}.values()))


def test_strangers_name_no_other_folders(room: TaggerRoom, tmp_path: Path) -> None:
    inside, outside = tmp_path / "data" / "photos", tmp_path / "private"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
    (inside / "way out").symlink_to(outside)
    room.base, room.only_below = tmp_path / "data", tmp_path / "data"
    assert room.folder('"photos"') == inside
    for named in ("../private", str(outside), "photos/way out", "~", "photos/../../private"):
        with pytest.raises(CrucibleError, match="only folders below"):
            room.folder(named)


def test_addresses_of_pictures_cannot_be_guessed(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (600, 300), "red").save(picture)
    links = Links(tmp_path / "cache")
    key = links.to(picture).rpartition("/")[2]
    assert Links(tmp_path / "cache").to(picture).rpartition("/")[2] != key
    small = links.file(key)
    assert small is not None and Image.open(small).size == (256, 128)
    for other in ("", "a.png", "../a.png", key[:-1] + ("0" if key[-1] != "0" else "1")):
        assert links.file(other) is None
    Image.new("RGB", (600, 300), "blue").save(picture)
    assert links.to(picture).rpartition("/")[2] != key  # a browser that keeps the old one asks anew


def test_the_route_says_what_cannot_be_shown(tmp_path: Path) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from extensions_lib.ui.tagger_links import add_route

    app, links = FastAPI(), Links(tmp_path / "cache")
    add_route(app, links)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    client: Any = TestClient(app)
    assert client.get(links.to(tmp_path / "broken.png")[1:]).status_code == 415
    assert client.get(links.to(tmp_path / "missing.png")[1:]).status_code == 415
    assert client.get("/crucible/tagger/picture/0123").status_code == 404
