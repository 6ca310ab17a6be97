"""Pictures moved to another folder with their captions, and back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from extensions_lib.datasets.moving import MoveProblem, move

Files = dict[str, bytes]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    written = {
        "a.png": b"A", "a.txt": b"a", "b.jpg": b"B", "b.caption": b"b", "c.png": b"C",
        "two.png": b"1", "two.jpg": b"2", "two.txt": b"both", "sub/d.png": b"D", "sub/d.txt": b"d",
    }  # fmt: skip
    for name, content in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_pictures_go_with_their_captions_and_come_back(photos: Path, tmp_path: Path) -> None:
    before, target = files(photos), tmp_path / "new" / "there"
    done = move(photos, target, ["a.png", "b.jpg", "c.png", "sub/d.png"])
    assert done.names == ("a.png", "b.jpg", "c.png", "sub/d.png") and not done.stayed
    gone = {"a.png", "a.txt", "b.jpg", "b.caption", "c.png", "sub/d.png", "sub/d.txt"}
    assert files(target) == {name: before[name] for name in sorted(gone)}
    assert files(photos) == {name: each for name, each in before.items() if name not in gone}
    move(done.target, done.source, done.names)
    assert files(photos) == before and files(target) == {}


def test_a_caption_of_two_pictures_serves_both(photos: Path, tmp_path: Path) -> None:
    before, target = files(photos), tmp_path / "there"
    done = move(photos, target, ["two.png"])
    assert files(target) == {"two.png": b"1", "two.txt": b"both"}
    assert files(photos)["two.txt"] == b"both"
    move(target, photos, done.names)
    assert files(photos) == before and files(target) == {}
    assert not move(photos, target, ["two.png", "two.jpg"]).stayed
    assert files(target) == {"two.jpg": b"2", "two.png": b"1", "two.txt": b"both"}
    assert "two.txt" not in files(photos)


@pytest.mark.parametrize("there", ["a.png", "a.txt"])
def test_nothing_is_written_over(photos: Path, tmp_path: Path, there: str) -> None:
    before, target = files(photos), tmp_path / "there"
    target.mkdir()
    (target / there).write_bytes(b"theirs")
    done = move(photos, target, ["a.png", "c.png"])
    assert done.names == ("c.png",)
    assert [note.name for note in done.stayed] == ["a.png"] and there in done.stayed[0].reason
    assert files(target) == {there: b"theirs", "c.png": b"C"}
    assert files(photos) == {name: each for name, each in before.items() if name != "c.png"}


def test_what_cannot_be_moved_stays_whole(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = files(photos), shutil.move

    def full(source: Path, target: Path) -> Path:
        if source.name == "a.png":
            target.write_bytes(b"half")  # as a copy to another disk leaves it
            raise OSError(28, "No space left on device")
        return Path(real(source, target))

    monkeypatch.setattr(shutil, "move", full)
    done = move(photos, tmp_path / "there", ["a.png", "c.png", "none.png"])
    assert done.names == ("c.png",)
    assert "disk is full" in done.stayed[0].reason and done.stayed[1].name == "none.png"
    assert files(photos) == {name: each for name, each in before.items() if name != "c.png"}
    assert files(tmp_path / "there") == {"c.png": b"C"}


def test_a_caption_that_cannot_be_taken_away_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.unlink

    def held(path: Path, missing_ok: bool = False) -> None:
        if path == photos / "a.txt":
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    done = move(photos, tmp_path / "there", ["a.png", "c.png"])
    assert done.names == ("a.png", "c.png")
    assert [note.name for note in done.stayed] == ["a.png"] and "stays too" in done.stayed[0].reason
    assert files(tmp_path / "there") == {"a.png": b"A", "a.txt": b"a", "c.png": b"C"}
    assert files(photos)["a.txt"] == b"a"


def test_folders_that_will_not_do(photos: Path) -> None:
    with pytest.raises(MoveProblem, match="is where the pictures are"):
        move(photos, photos / "sub" / "..", ["a.png"])
    with pytest.raises(MoveProblem, match="cannot be made"):
        move(photos, photos / "a.png" / "below", ["c.png"])
