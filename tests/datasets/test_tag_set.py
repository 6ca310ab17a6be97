"""The set of pictures and captions: looking, previews, changes, history."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from extensions_lib.datasets import edits, rules
from extensions_lib.datasets.captions import CaptionProblem
from extensions_lib.datasets.filters import FilterProblem
from extensions_lib.datasets.journal import EditedOutside
from extensions_lib.datasets.journal_store import JournalProblem
from extensions_lib.datasets.pictures import PictureProblem
from extensions_lib.datasets.rules import Rule, Rules
from extensions_lib.datasets.tag_set import TagSet
from extensions_lib.errors import CrucibleError
from tests.datasets.sets import make, texts

LATIN = "café".encode("latin-1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(
        tmp_path / "set",
        {
            "1.png": "1girl, hat",
            "2.png": b"\xef\xbb\xbf1girl, smile\r\n1girl, blue_hair\r\n",
            "10.png": None,
            "latin.png": LATIN,
            "sub/a.png": "1boy, facial hair, A man, standing in the rain.",
            "sub/empty.png": "",
        },
    )


def test_looking(folder: Path) -> None:
    photos = TagSet(folder)
    assert photos.names == ["1.png", "2.png", "10.png", "latin.png", "sub/a.png", "sub/empty.png"]
    assert len(TagSet(folder, subfolders=False)) == 4
    assert photos.item("2.png").text == "1girl, smile\n1girl, blue_hair\n"
    assert photos.item("10.png").caption is None and photos.item("10.png").text == ""
    assert photos.untagged() == ["10.png", "sub/empty.png"]
    assert photos.frequency()[:2] == [("1girl", 2), ("1boy", 1)]
    assert photos.frequency(["1.png"]) == [("1girl", 1), ("hat", 1)]
    assert [tag for tag, _ in photos.frequency(order="alphabet")][:3] == ["1boy", "1girl", "A man"]
    assert photos.filter("1girl AND NOT hat") == ["2.png"]
    assert photos.filter("blue hair") == ["2.png"]
    assert photos.filter("*rain*, name:sub/*") == ["sub/a.png"]
    assert photos.filter("untagged", ["10.png", "1.png"]) == ["10.png"]
    assert photos.unknown_tags("1girl AND NOT haat OR blue_hair OR x*") == ["haat"]
    with pytest.raises(FilterProblem):
        photos.filter("(")
    with pytest.raises(CrucibleError, match=r"no\.png: is no picture of"):
        photos.item("no.png")


def test_pages(folder: Path) -> None:
    photos = TagSet(folder)
    page = photos.page(2, 4)
    assert ([item.name for item in page.items], page.number, page.pages, page.total) == (
        ["sub/a.png", "sub/empty.png"], 2, 2, 6
    )  # fmt: skip
    assert photos.page(99, 4) == page and photos.page(0, 4).number == 1
    empty = photos.page(1, 4, [])
    assert (empty.items, empty.number, empty.pages) == ((), 1, 1)


def test_a_preview_does_nothing_and_applying_does_just_that(folder: Path) -> None:
    photos = TagSet(folder)
    before = texts(folder)
    preview = photos.preview(edits.add("portrait"), photos.filter("NOT hat"))
    assert texts(folder) == before and not (folder / ".crucible").exists()
    shown = {change.name: (change.before, change.after) for change in preview.changes}
    assert shown == {
        "2.png": (
            "1girl, smile\n1girl, blue_hair\n",
            "1girl, smile, portrait\n1girl, blue_hair, portrait\n",
        ),
        "10.png": (None, "portrait"),
        "sub/a.png": (before["sub/a.txt"].decode(), before["sub/a.txt"].decode() + ", portrait"),
        "sub/empty.png": ("", "portrait"),
    }
    assert [note.name for note in preview.skipped] == ["latin.png"]
    assert photos.apply(preview) == 4
    after = texts(folder)
    assert after["2.txt"] == (
        b"\xef\xbb\xbf1girl, smile, portrait\r\n1girl, blue_hair, portrait\r\n"
    )
    assert after["latin.txt"] == LATIN
    assert photos.item("10.png").tags == ("portrait",)
    assert photos.untagged() == []
    photos.undo()
    assert texts(folder) == before
    assert photos.item("10.png").caption is None
    photos.redo()
    assert texts(folder) == after
    assert TagSet(folder).item("10.png").tags == ("portrait",)


def test_a_foreign_encoding_is_said_and_left(folder: Path) -> None:
    photos = TagSet(folder)
    assert any("latin.txt: is not UTF-8" in problem for problem in photos.problems)
    assert photos.do(edits.write({"latin.png": "x"})) == 0
    assert photos.do(edits.add("x"), ["latin.png"]) == 0
    assert texts(folder)["latin.txt"] == LATIN


def test_rules_are_previewed_and_done(folder: Path) -> None:
    photos = TagSet(folder)
    some = Rules(
        [
            Rule(tags=("1boy", "facial hair"), add=("Smith",)),
            Rule(add=("Smith_group1",), scope="pictures", where=("sub/a.png", "10.png")),
        ]
    )
    preview = photos.preview(some.edit())
    assert {change.name: change.after for change in preview.changes} == {
        "10.png": "Smith_group1",
        "sub/a.png": "Smith_group1, Smith, A man, standing in the rain.",
    }
    photos.apply(preview)
    assert photos.history()[0].title == "Apply 2 rules"
    rules.save(folder, rules.RuleFile(some.rules))
    assert rules.load(folder).rules == some.rules


def test_kohya_s_suffix(folder: Path) -> None:
    (folder / "10.caption").write_text("from kohya")
    (folder / "1.caption").write_text("other")
    photos = TagSet(folder)
    assert photos.item("10.png").file == "10.caption"
    assert photos.item("1.png").text == "1girl, hat"
    assert "1.png: has 1.txt and 1.caption; 1.txt is used." in photos.problems
    photos.do(edits.add("x"), ["10.png", "sub/empty.png"])
    assert texts(folder)["10.caption"] == b"from kohya, x"
    kohya = TagSet(folder, suffix=".caption")
    assert kohya.item("1.png").text == "other"
    assert kohya.item("2.png").file == "2.txt"
    with pytest.raises(CaptionProblem, match=r"\.txt or \.caption"):
        TagSet(folder, suffix=".json")


def test_two_pictures_with_one_caption(folder: Path) -> None:
    (folder / "1.jpg").write_bytes((folder / "1.png").read_bytes())
    photos = TagSet(folder)
    assert "1.jpg, 1.png: share the caption 1.txt." in photos.problems
    assert photos.do(edits.add("x")) == 5
    assert photos.item("1.jpg").tags == photos.item("1.png").tags == ("1girl", "hat", "x")
    photos.do(edits.write({"1.png": "typed"}))
    assert photos.item("1.jpg").text == "typed"


def test_an_edit_from_outside_is_not_overwritten(folder: Path) -> None:
    photos = TagSet(folder)
    preview = photos.preview(edits.add("x"))
    (folder / "1.txt").write_text("from outside")
    (folder / "10.txt").write_text("also new")
    before = texts(folder)
    with pytest.raises(EditedOutside) as refused:
        photos.apply(preview)
    assert set(refused.value.names) == {"1.txt", "10.txt"}
    assert texts(folder) == before and photos.history() == []
    photos.reload()
    photos.do(edits.add("x"))
    assert texts(folder)["1.txt"] == b"from outside, x"
    assert texts(folder)["10.txt"] == b"also new, x"


def test_a_caption_written_twice_from_one_preview(folder: Path) -> None:
    photos = TagSet(folder)
    preview = photos.preview(edits.add("x"), ["1.png"])
    photos.apply(preview)
    with pytest.raises(EditedOutside):
        photos.apply(preview)


def test_history_and_going_back(folder: Path) -> None:
    photos = TagSet(folder)
    found = [texts(folder)]
    for tag in ("a", "b", "c"):
        photos.do(edits.add(tag))
        found.append(texts(folder))
    ids = [0, *(entry.id for entry in reversed(photos.history()))]
    assert [entry.title for entry in photos.history()] == ["Add c", "Add b", "Add a"]
    assert all(entry.count == 5 for entry in photos.history())
    for place in (1, 3, 0, 2):
        photos.go_to(ids[place])
        assert texts(folder) == found[place]
    versions = [version.content for version in TagSet(folder).versions("1.png")]
    assert versions == [b"1girl, hat", *(b"1girl, hat, " + t for t in (b"a", b"a, b", b"a, b, c"))]


def test_what_was_lost_outside_is_brought_back(folder: Path) -> None:
    photos = TagSet(folder)
    photos.do(edits.add("x"))
    good = texts(folder)
    (folder / "1.txt").write_bytes(b"")
    (folder / "2.txt").write_bytes(b"\0" * 20)
    (folder / "10.txt").unlink()
    photos = TagSet(folder)
    lost = {note.name: note.reason for note in photos.changed_outside()}
    assert set(lost) == {"1.png", "2.png", "10.png"}
    assert "zero bytes" in lost["2.png"] and "removed" in lost["10.png"]
    assert photos.restore(lost) == 3
    assert texts(folder) == good and photos.changed_outside() == []
    assert photos.item("10.png").tags == ("x",)
    photos.undo()
    assert texts(folder)["1.txt"] == b""


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PictureProblem, match="no such folder"):
        TagSet(tmp_path / "none")
    empty = TagSet(tmp_path)
    assert (len(empty), empty.do(edits.add("x"))) == (0, 0)
    assert os.listdir(tmp_path) == []


def test_a_set_that_cannot_be_written_to_can_be_looked_at(folder: Path) -> None:
    (folder / ".crucible").write_bytes(b"")  # a file in the way stops root, too
    photos = TagSet(folder)
    before = texts(folder)
    preview = photos.preview(edits.add("x"))
    with pytest.raises(JournalProblem, match="cannot be written"):
        photos.apply(preview)
    assert texts(folder) == before and photos.item("1.png").text == "1girl, hat"


@pytest.mark.parametrize("name", ["a" * 251, "あ" * 83, "é" * 125])
def test_names_as_long_as_a_disk_takes(name: str, tmp_path: Path) -> None:
    photos = TagSet(make(tmp_path / "set", {f"{name}.png": None}))
    assert not photos.problems
    assert photos.do(edits.add("hat")) == 1
    assert texts(photos.folder) == {f"{name}.txt": b"hat"}
    photos.undo()
    assert texts(photos.folder) == {}
