"""The Tagger tab's events under the gradio that is installed: orders of its HTML, and answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.gradio_versions.test_gradio_page import Page, page  # noqa: F401

pytestmark = pytest.mark.usefixtures("page")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, two of them with captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("red, hat")
    (folder / "b.txt").write_text("green")
    return folder


def order(page: Page, tab: str, folder: Path, **told: Any) -> dict[str, Any]:  # noqa: F811
    """What the page answers to an order of a tab's own HTML; each order is its own window's."""
    event = page.event(f"crucible-{tab}-wire", "input")
    values = [_given(page, name, folder) for name in event.inputs[1:]]
    made = page.call(event, json.dumps({**told, "number": 7}), *values)
    assert 'data-number="7"' in str(made[f"crucible-{tab}-told"])
    return made


def _given(page: Page, name: str, folder: Path) -> Any:  # noqa: F811
    if name == "crucible-tagger-folder":
        return str(folder)
    shown = {e["props"].get("elem_id"): e["props"].get("value") for e in page.components.values()}
    return shown.get(name)


def test_the_editor_changes_and_takes_back(page: Page, photos: Path) -> None:  # noqa: F811
    opened = order(page, "edit", photos, do="filter", filter="hat OR green")
    assert "2 pass the filter" in str(opened["crucible-edit-bar"])
    names = re.findall(r'data-name="(.)\.png"', str(opened["crucible-edit-gallery"]))
    assert names == ["a", "b"]
    order(page, "edit", photos, do="remove", value="hat")
    assert (photos / "a.txt").read_text() == "red"
    undone = order(page, "edit", photos, do="undo")
    assert (photos / "a.txt").read_text() == "red, hat"
    assert "Undo: Remove hat" in str(undone["crucible-edit-notes"])


def test_rules_are_kept_with_the_set(page: Page, photos: Path) -> None:  # noqa: F811
    made = order(page, "rules", photos, do="new")
    assert 'name="tags"' in str(made["crucible-rules-list"])
    typed = {"on": True, "name": "", "match": "all", "tags": "red, hat", "keep": "replace"}
    typed |= {"unless": "", "add": "Smith", "drop": "", "place": "found", "scope": "all"}
    made = order(page, "rules", photos, do="change", value="0", where="", **typed)
    assert "Apply 1 rule to 1 caption" in str(made["crucible-rules-head"])
    order(page, "rules", photos, do="apply")
    assert (photos / "a.txt").read_text() == "Smith"
    assert json.loads((photos / "crucible-rules.json").read_text())["rules"][0]["add"] == ["Smith"]


def test_pictures_are_left_out(page: Page, photos: Path) -> None:  # noqa: F811
    made = order(page, "prepare", photos, do="leave", value="b.png")
    go = made["crucible-prepare-go"]
    assert "Prepare 2 pictures" in json.dumps(go)
    made = order(page, "prepare", photos, do="open", value="c.png")
    assert "crucible-crop-box" in str(made["crucible-prepare-cropper"])


def test_a_wrong_folder_is_said(page: Page, tmp_path: Path) -> None:  # noqa: F811
    for tab in ("edit", "rules", "prepare"):
        made = order(page, tab, tmp_path / "none", do="undo")
        assert "there is no such folder" in str(made[f"crucible-{tab}-notes"])


def test_the_button_says_what_it_will_do(page: Page, photos: Path) -> None:  # noqa: F811
    changes = [
        e for e in page.events if (e.target, e.trigger) == ("crucible-tagger-folder", "change")
    ]
    [event] = [e for e in changes if "crucible-tagger-go" in e.outputs]
    made = page.call(event, str(photos), False, "keep")
    assert "Tag 1 picture, keep 2 captions" in json.dumps(made["crucible-tagger-go"])
    made = page.call(event, str(photos), False, "ask")
    assert "2 of 3 pictures have captions already" in str(made["crucible-tagger-notes"])


def test_a_threshold_moves_before_anything_was_asked(page: Page) -> None:  # noqa: F811
    for tab, told in (("one", "bars"), ("tagger", "bars")):
        event = page.event(f"crucible-{tab}-select-general", "change")
        made = page.call(event, *(page_value(page, name) for name in event.inputs))
        assert not made[f"crucible-{tab}-{told}"] or "alert" not in str(made)


def page_value(page: Page, name: str) -> Any:  # noqa: F811
    """What stands in a field at first; nothing for a state."""
    found = [e for e in page.components.values() if e["props"].get("elem_id") == name]
    return found[0]["props"].get("value") if found else None


def test_fields_of_the_tagger_are_kept_by_the_browser(page: Page) -> None:  # noqa: F811
    restoring = [e for e in page.events if "crucibleTagger?.restore" in e.js]
    remembering = {e.target for e in page.events if "crucibleTagger?.remember" in e.js}
    assert len(restoring) == 1 and restoring[0].target == "load"
    assert remembering == set(restoring[0].outputs) >= {"crucible-tagger-folder"}
