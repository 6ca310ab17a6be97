"""Folders of training sets, and the pictures in them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from extensions_lib.datasets.folders import Subset, read_folder, subsets_of
from extensions_lib.datasets.items import find_pictures
from extensions_lib.datasets.options import DataOptions
from extensions_lib.datasets.pictures import PictureProblem
from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.files.cache import FileCache
from tests.datasets.sets import make


def test_folders_of_kohya(tmp_path: Path) -> None:
    make(tmp_path, {"10_sls 1girl/a.png": "x", "3_a_b/a.png": None, "2/a.png": None})
    assert read_folder(tmp_path) == [
        Subset(tmp_path / "10_sls 1girl", 10, "sls 1girl"),
        Subset(tmp_path / "2", 2, None),
        Subset(tmp_path / "3_a_b", 3, "a_b"),
    ]
    [reg] = read_folder(make(tmp_path / "reg", {"1_1girl/a.png": None}), is_reg=True)
    assert reg == Subset(tmp_path / "reg/1_1girl", 1, "1girl", is_reg=True)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    make(tmp_path, {"10_a/a.png": None, "0_b/a.png": None, "c/a.png": None, "loose.png": None})
    (tmp_path / "5_empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    notes: list[str] = []
    assert [each.name for each in read_folder(tmp_path, notes=notes)] == ["10_a"]
    said = "\n".join(notes)
    for word in ("0 repeats", "5_empty", "10_c", "1 pictures beside"):
        assert word in said
    assert len(notes) == 4


def test_a_flat_folder_and_one_of_folders(tmp_path: Path) -> None:
    flat = make(tmp_path / "flat", {"a.png": "x", "more/b.png": None})
    assert read_folder(flat) == [Subset(flat)]
    deep = make(tmp_path / "deep", {"one/a.png": None, "two/a.png": None})
    assert read_folder(deep) == [Subset(deep / "one"), Subset(deep / "two")]
    named = make(tmp_path / "10_sls cat", {"a.png": None})
    assert read_folder(named) == [Subset(named, 10, "sls cat")]


def test_no_pictures_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PictureProblem, match="there are no pictures"):
        read_folder(tmp_path)
    with pytest.raises(PictureProblem, match="no such folder"):
        read_folder(tmp_path / "missing")
    with pytest.raises(PictureProblem, match="train_data_dir: name the folder"):
        subsets_of(DataOptions())


def test_subsets_of_options(tmp_path: Path) -> None:
    make(tmp_path / "train", {"4_x/a.png": None})
    make(tmp_path / "reg", {"1_y/a.png": None})
    options = DataOptions(train_data_dir=str(tmp_path / "train"), num_repeats=7)
    both = DataOptions(
        train_data_dir=str(tmp_path / "train"), reg_data_dir=str(tmp_path / "reg"), num_repeats=7
    )
    assert [each.is_reg for each in subsets_of(options)] == [False]
    one, other = subsets_of(both)
    assert (one.is_reg, other.is_reg) == (False, True)
    assert one.settings(both).num_repeats == 4
    assert Subset(tmp_path).settings(both).num_repeats == 7
    assert Subset(tmp_path, overrides={"flip_aug": True}).settings(both).flip_aug
    with pytest.raises(CrucibleError, match="leave train_data_dir"):
        subsets_of(DataOptions(train_data_dir="a", dataset_config="b"))


# --- the pictures -----------------------------------------------------------------------------


def test_pictures_with_their_captions(tmp_path: Path) -> None:
    folder = make(tmp_path, {"a.png": "one\n", "b.png": None, "c.png": "", "d_1_2_3_4.png": None})
    (tmp_path / "b.caption").write_text("two")
    (tmp_path / "a.caption").write_text("other")
    (tmp_path / "d.txt").write_text("a face")
    found = find_pictures([Subset(folder)], DataOptions())
    a, b, c, d = found.pictures
    assert (a.caption, b.caption, c.caption, d.caption) == ("one\n", "two", "", "a face")
    assert a.caption_file == tmp_path / "a.txt" and b.caption_file == tmp_path / "b.caption"
    assert a.size == (8, 8) and a.where.bucket == (512, 512) and a.content != b.content
    preferred = find_pictures([Subset(folder)], DataOptions(caption_extension="caption"))
    assert preferred.pictures[0].caption == "other"


def test_broken_pictures_and_captions_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path, {"a.png": "x", "b.png": "x", "c.png": b"\xff\xfe\x00"})
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    found = find_pictures([Subset(folder)], DataOptions())
    assert [each.path.name for each in found.pictures] == ["a.png"]
    assert sorted(Path(note.name).name for note in found.broken) == ["b.png", "c.png"]
    assert any("UTF-16" in note.reason for note in found.broken)


def test_a_picture_is_decoded_once_while_its_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.datasets import items

    folder = make(tmp_path / "set", {"a.png": None, "b.png": None})
    facts = FileCache(tmp_path)
    before = find_pictures([Subset(folder)], DataOptions(), facts=facts)
    opened: list[Path] = []
    plain = items.open_picture
    monkeypatch.setattr(items, "open_picture", lambda path: opened.append(path) or plain(path))
    assert find_pictures([Subset(folder)], DataOptions(), facts=facts) == before
    assert not opened
    make(folder, {"c.png": None, "d.png": None, "b.png": None})
    changed = find_pictures([Subset(folder)], DataOptions(), facts=facts)
    assert {path.name for path in opened} == {"b.png", "c.png", "d.png"}
    assert changed.pictures[1].content != before.pictures[1].content


def test_looking_can_be_stopped(tmp_path: Path) -> None:
    folder = make(tmp_path, {f"{number}.png": None for number in range(8)})
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        find_pictures([Subset(folder)], DataOptions(), stop=stop)
