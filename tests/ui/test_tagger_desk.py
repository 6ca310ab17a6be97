"""The Tagger's editor, rules and preparing without a page: orders, and what cannot be done."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from extensions_lib.datasets.prepare import Preparation
from extensions_lib.datasets.survey import survey
from extensions_lib.datasets.tag_set import TagSet
from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.pool import Pool
from extensions_lib.ui import tagger_edit, tagger_gallery, tagger_shelves
from extensions_lib.ui.tagger_desk import PAGE, Desk, Done, View
from extensions_lib.ui.tagger_links import Links
from extensions_lib.ui.tagger_room import TaggerRoom
from extensions_lib.ui.tagger_rulebook import Answer, RuleBook
from extensions_lib.ui.tagger_workbench import Bench, becomes, laid_out, surveyed

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures, three with captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate("abcd"):
        Image.new("RGB", (64, 48), (number * 60, 90, 30)).save(folder / f"{name}.png")
    for name, text in (("a", "1boy, hat"), ("b", "1girl, hat"), ("c", "1girl")):
        (folder / f"{name}.txt").write_text(text)
    return folder


class Window:
    """Orders one after the other, as one window gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.set = folder, TagSet(folder)
        self.view = View(folder)

    def __call__(self, do: str, **told: Any) -> Done:
        done = Desk(self.set, self.view).do({"do": do, **told})
        self.view = done.view
        return done

    @property
    def desk(self) -> Desk:
        return Desk(self.set, self.view)


@pytest.fixture
def window(photos: Path) -> Window:
    return Window(photos)


# --- the editor -------------------------------------------------------------------------------


def test_changes_go_to_what_is_picked_else_to_what_passes(window: Window) -> None:
    window("filter", filter="1girl")
    assert window.desk.targets == ["b.png", "c.png"]
    window("pick", names=["c.png"], of=["b.png", "c.png"])
    assert window.desk.targets == ["c.png"]
    assert window("add", tags="smile", place="start").said == ("1 caption changed.",)
    assert (window.folder / "c.txt").read_text() == "smile, 1girl"
    window("filter", filter="hat")  # the picked one does not pass: it is picked no more
    assert window.desk.targets == ["a.png", "b.png"]
    window("none")
    window("all")
    assert window.view.picked == {"a.png", "b.png"}


def test_a_wrong_filter_changes_nothing(window: Window) -> None:
    window("filter", filter="hat")
    done = window("filter", filter="hat AND (")
    assert "Filter:" in done.problem and done.view.filter == "hat"
    assert window("filter", filter="scarf").said == ("No caption has the tag scarf.",)


@pytest.mark.parametrize(
    ("do", "told"),
    [
        ("add", {"tags": " , "}),
        ("replace", {"search": "", "by": "x"}),
        ("replace", {"search": "(", "by": "x", "how": "regex"}),
        ("rename", {"value": "hat", "to": ""}),
        ("sort", {"by": "alphabet", "first": "many"}),
        ("sort", {"by": "score"}),
        ("shorten", {"most": "0"}),
        ("put", {"to": "elsewhere"}),  # nothing is picked, nor filtered
        ("put-back", {"value": '{"from": "elsewhere", "names": ["../../passwd"]}'}),
        ("write", {"value": "../../etc/passwd", "text": "x"}),
        ("take over", {}),
    ],
)
def test_an_order_that_cannot_be_followed_is_said(
    window: Window, do: str, told: dict[str, Any]
) -> None:
    before = {path.name: path.read_bytes() for path in window.folder.glob("*.txt")}
    done = window(do, **told)
    assert done.problem and not done.changed
    assert {path.name: path.read_bytes() for path in window.folder.glob("*.txt")} == before


def test_captions_are_tidied(window: Window) -> None:
    window("write", value="a.png", text="sls, 1boy, hat, a long sleeve")
    window("write", value="d.png", text="")
    window("sort", by="length", first="1", backwards=True)
    assert (window.folder / "a.txt").read_text() == "sls, a long sleeve, 1boy, hat"
    window("pick", names=["a.png"], of=["a.png"])
    window("sort", by="frequency", first="")
    assert (window.folder / "a.txt").read_text().startswith("hat, ")
    window("shorten", most="4")
    assert (window.folder / "a.txt").read_text() == "hat, 1boy"  # each of four tokens is a word
    window("none")
    assert window("from-names").said == ("1 caption changed.",)
    assert (window.folder / "d.txt").read_text() == "d"


def test_pictures_are_moved_and_put_back(window: Window) -> None:
    before = {path.name: path.read_bytes() for path in window.folder.iterdir() if path.is_file()}
    window("pick", names=["b.png", "d.png"], of=["a.png", "b.png", "c.png", "d.png"])
    done = window("put", to="5_good")
    assert done.said[0] == "2 pictures moved." and not done.view.picked
    assert window.set.names == ["5_good/b.png", "5_good/d.png", "a.png", "c.png"]
    assert (window.folder / "5_good" / "b.txt").read_text() == "1girl, hat"
    assert done.moving is not None
    back = {"from": str(done.moving.target), "names": done.moving.names}
    window("put-back", value=json.dumps(back))
    assert {p.name: p.read_bytes() for p in window.folder.iterdir() if p.is_file()} == before
    (window.folder / "5_good" / "a.png").write_bytes(b"theirs")
    window("filter", filter="1boy")
    assert "is there already" in window("put", to="5_good").said[0]
    assert (window.folder / "5_good" / "a.png").read_bytes() == b"theirs"


def test_an_order_for_the_set_before_changes_nothing(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    room = TaggerRoom(Pool(tmp_path), tmp_path, tmp_path)
    parts = {each.name: object() for each in fields(tagger_edit.EditTab)}
    tab = tagger_edit.EditTab(**{**parts, "room": room})  # type: ignore[arg-type]
    order = {"do": "write", "value": "a.png", "text": "for the first"}
    changes = tagger_edit._answer(tab, View(photos), str(other), False, order)
    assert changes[tab.view].folder == other
    assert (other / "a.txt").read_text() == (photos / "a.txt").read_text() == "1boy, hat"
    tagger_edit._answer(tab, changes[tab.view], str(other), False, order)
    assert (other / "a.txt").read_text() == "for the first"


def test_undo_meets_another_program(window: Window) -> None:
    window("add", tags="photo")
    (window.folder / "b.txt").write_text("their own")
    done = window("undo")
    assert done.outside == "undo" and "another program" in done.problem
    assert (window.folder / "a.txt").read_text() == "1boy, hat, photo"
    assert window("undo-keep").said[1:] == ("1 caption stayed as another program left them.",)
    assert (window.folder / "a.txt").read_text() == "1boy, hat"
    assert (window.folder / "b.txt").read_text() == "their own"


def test_history_goes_to_any_step(window: Window) -> None:
    for tag in ("one", "two", "three"):
        window("add", tags=tag)
    steps = window.set.history()
    window("go", value=str(steps[-1].id))
    assert (window.folder / "c.txt").read_text() == "1girl, one"
    window("go", value="0")
    assert (window.folder / "c.txt").read_text() == "1girl"
    assert not (window.folder / "d.txt").exists()
    window("go", value=str(steps[0].id))
    assert (window.folder / "d.txt").read_text() == "one, two, three"
    html = tagger_gallery.history(window.set.history())
    assert html.count("<li") == 4 and html.count("aria-current") == 1


def test_nothing_of_a_set_gets_into_the_page_as_html(photos: Path, tmp_path: Path) -> None:
    (photos / "a.txt").write_text(f'{EVIL}, "quoted" & more')
    (photos / "b.png").rename(photos / "<b>&.png")
    (photos / "c.txt").write_bytes(b"\xff\xfe\xff")  # cannot be read
    window = Window(photos)
    window("add", tags=f"{EVIL} too")
    links = Links(tmp_path / "cache")
    parts = [
        tagger_gallery.gallery(window.desk, links),
        tagger_gallery.tags(window.desk),
        tagger_gallery.bar(window.desk, window.set.history()),
        tagger_gallery.history(window.set.history()),
        tagger_shelves.shelf(laid_out(photos, False, Bench()), links),
    ]
    assert "&lt;img" in "".join(parts)
    for html in parts:
        assert "<img src=x" not in html and "<b>&.png" not in html


def test_a_page_holds_some_of_many(photos: Path, tmp_path: Path) -> None:
    for number in range(2 * PAGE):
        (photos / f"x{number:03d}.png").hardlink_to(photos / "a.png")
    window = Window(photos)
    links = Links(tmp_path / "cache")
    assert tagger_gallery.gallery(window.desk, links).count("<li") == PAGE
    window("page", value="3")
    assert tagger_gallery.gallery(window.desk, links).count("<li") == 4
    assert "3/3" in tagger_gallery.bar(window.desk, [])


# --- rules ------------------------------------------------------------------------------------

FORM = {
    "on": True, "name": "", "match": "all", "tags": "1boy, hat", "unless": "", "keep": "replace",
    "add": "Smith", "drop": "", "place": "found", "scope": "all", "where": "",
}  # fmt: skip


def rule(folder: Path, do: str, picked: frozenset[str] = frozenset(), **told: Any) -> Answer:
    return RuleBook(TagSet(folder), folder, picked).do({"do": do, **told})


def test_rules_are_ordered_copied_and_dropped(photos: Path) -> None:
    for name in ("first", "second"):
        place = len(rule(photos, "new").rules) - 1
        rule(photos, "change", value=place, **{**FORM, "name": name})
    rule(photos, "copy", value=0)
    rule(photos, "down", value=1)
    rule(photos, "up", value=0)  # it is the first
    assert [each.name for each in rule(photos, "open").rules] == ["first", "second", "first"]
    rule(photos, "drop", value=0)
    kept = json.loads((photos / "crucible-rules.json").read_text())["rules"]
    assert [each["name"] for each in kept] == ["second", "first"]


def test_a_rule_that_is_none_is_not_kept(photos: Path) -> None:
    rule(photos, "new")
    rule(photos, "change", value=0, **FORM)
    answer = rule(photos, "change", value=0, **{**FORM, "scope": "filter", "where": "hat ("})
    assert "Filter:" in answer.typed[0] and answer.rules[0].scope == "all"
    (photos / "crucible-rules.json").write_text("{")
    with pytest.raises(CrucibleError, match="is not JSON"):
        rule(photos, "open")


def test_what_a_file_says_beside_the_rules_stays(photos: Path) -> None:
    own = {"rules": [{"tags": ["hat"], "colour": "red"}], "by": "ann"}
    (photos / "crucible-rules.json").write_text(json.dumps(own))
    rule(photos, "change", value=0, **FORM)
    kept = json.loads((photos / "crucible-rules.json").read_text())
    assert kept["by"] == "ann" and kept["rules"][0]["colour"] == "red"


def test_rules_take_what_is_picked(photos: Path) -> None:
    rule(photos, "new")
    assert "pick some in Edit" in rule(photos, "take", value=0).problem
    taken = rule(photos, "take", frozenset({"c.png", "a.png"}), value=0).rules[0]
    assert (taken.scope, taken.where) == ("pictures", ("a.png", "c.png"))


# --- preparing --------------------------------------------------------------------------------


def test_what_is_chosen_stays_with_its_set(photos: Path) -> None:
    bench = laid_out(photos, False, Bench()).do({"do": "leave", "value": "b.png"})
    assert laid_out(photos, False, bench).taken == ["a.png", "c.png", "d.png"]
    assert laid_out(photos, True, bench).taken == ["a.png", "b.png", "c.png", "d.png"]


def test_a_crop_is_drawn_in_shares_and_kept_in_pixels(photos: Path) -> None:
    bench = laid_out(photos, False, Bench()).do({"do": "open", "value": "a.png"})
    assert bench.size == (64, 48)
    bench = bench.do({"do": "crop", "value": "a.png", "box": [0.25, 0, 2.0, 0.5]})
    assert bench.boxes == {"a.png": (16, 0, 64, 24)}
    tiny = bench.do({"do": "crop", "value": "a.png", "box": [0.5, 0.5, 0.51, 0.51]})
    assert tiny.boxes == bench.boxes
    assert bench.do({"do": "uncrop", "value": "a.png"}).boxes == {}
    with pytest.raises(CrucibleError, match="is no picture"):
        bench.do({"do": "open", "value": "../secret.png"})


def test_what_is_left_of_a_picture() -> None:
    square = Preparation(size="square", side=32)
    assert becomes((64, 48), None, square) == ((8, 0, 56, 48), "32 × 32")
    assert becomes((64, 48), (10, 10, 50, 40), square) == ((15, 10, 45, 40), "32 × 32, which it is"
        " too small for")  # fmt: skip


def test_doubles_are_left_out_but_the_largest(photos: Path) -> None:
    big = Image.effect_noise((256, 256), 90).convert("RGB")
    big.save(photos / "z.png")
    big.resize((200, 200)).save(photos / "y.png")
    (photos / "broken.png").write_bytes(b"")
    bench = laid_out(photos, False, Bench())
    found = surveyed(photos, survey([photos / name for name in bench.names], 128))
    assert ("z.png", "y.png") in found.duplicates and len(found.broken) == 1
    assert set(found.too_small) == {"a.png", "b.png", "c.png", "d.png"}
    assert "y.png" in found.doubles and "z.png" not in found.doubles
