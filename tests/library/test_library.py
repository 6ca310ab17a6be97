"""The index: names, duplicates, files beside networks, and opening no file twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FileProblem
from extensions_lib.files.safe import write_safetensors
from extensions_lib.library import Library, Shelf, index

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("net") / "a.safetensors"
    write_safetensors(
        path,
        {f"{Q}.lora_up.weight": torch.ones(320, 1), f"{Q}.lora_down.weight": torch.ones(1, 768)},
    )
    return path.read_bytes()


def aliased(path: Path, alias: str) -> None:
    tensors = {
        f"{Q}.lora_up.weight": torch.ones(320, 1),
        f"{Q}.lora_down.weight": torch.ones(1, 768),
    }
    write_safetensors(path, tensors, {"ss_output_name": alias})


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose header was read."""
    seen: list[Path] = []
    real = index.learn

    def counted(shelf: Shelf, path: Path) -> dict:
        seen.append(path)
        return real(shelf, path)

    monkeypatch.setattr(index, "learn", counted)
    return seen


def library(*folders: Path, cache: Path | None = None) -> Library:
    made = Library(folders, cache)
    made.refresh()
    return made


def test_names_and_facts(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "top.safetensors", content)
    put(tmp_path / "sub" / "deep" / "Inner.safetensors", content)
    aliased(tmp_path / "sub" / "file.safetensors", "Alias Name")
    put(tmp_path / "sub" / "notes.md", b"")
    put(tmp_path / ".hidden" / "no.safetensors", content)
    found = library(tmp_path)
    assert [entry.relative for entry in found.entries] == ["top", "sub/file", "sub/deep/Inner"]
    top = found.find("top")
    assert top is not None
    assert (top.kind, str(top.family), top.layers, top.problem) == ("LoRA", "SD1", 1, None)
    inner = found.entries[2]
    for name in ("Inner", "sub/deep/Inner", "sub\\deep\\Inner", "inner", "Inner.safetensors"):
        assert found.find(name) is inner, name
    for name in ("Alias Name", "alias name", "file", "sub/file"):
        assert found.find(name) is found.entries[1], name
    for name in ("deep/Inner", "", "nobody", "Inner.png"):
        assert found.find(name) is None, name
    assert (found.duplicates, found.problems) == ([], [])


def test_exact_case_comes_before_another_case(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "A.safetensors", content)
    put(tmp_path / "sub" / "a.safetensors", content)
    found = library(tmp_path)
    for name, relative in (("A", "A"), ("a", "sub/a")):
        entry = found.find(name)
        assert entry is not None
        assert entry.relative == relative


def test_duplicates_are_said(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "one" / "same.safetensors", content)
    put(tmp_path / "one" / "sub" / "same.safetensors", content)
    put(tmp_path / "two" / "same.safetensors", content)
    aliased(tmp_path / "one" / "x.safetensors", "y")
    aliased(tmp_path / "one" / "y.safetensors", "z")
    aliased(tmp_path / "two" / "w.safetensors", "z")
    found = library(tmp_path / "one", tmp_path / "two")
    best, below = found.find("same"), found.find("sub/same")
    assert best is not None
    assert below is not None
    assert best.path == tmp_path / "one" / "same.safetensors"
    assert (found.tag_name(best), found.tag_name(below)) == ("same", "sub/same")
    said = "\n".join(found.duplicates)
    assert f"{tmp_path / 'two' / 'same.safetensors'} is hidden" in said
    assert "'sub/same'" in said
    assert "'y', the alias" in said
    assert "'z', the alias" in said
    assert len(found.duplicates) == 4
    by_alias = found.find("y")
    assert by_alias is not None
    assert by_alias.path.stem == "y"


def test_a_folder_given_twice_and_links_in_circles(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "sub" / "a.safetensors", content)
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nothing")
    found = library(tmp_path, tmp_path / "sub", tmp_path / "missing")
    assert [entry.relative for entry in found.entries] == ["sub/a"]
    assert len(found.problems) == 1
    assert "gone.safetensors" in found.problems[0]


def test_broken_files_are_entries(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "cut.safetensors", content[:-3])
    put(tmp_path / "page.safetensors", b"<!doctype html>")
    put(tmp_path / "strange.safetensors", b"")
    write_safetensors(tmp_path / "emb.safetensors", {"emb_params": torch.ones(1, 768)})
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for name, part in (("vera", "vera_lambda_b"), ("new", "gralora_A")):
        write_safetensors(tmp_path / f"{name}.safetensors", {f"{layer}.{part}": torch.ones(9)})
    put(tmp_path / "good.safetensors", content)
    found = library(tmp_path)
    problems = {entry.name: entry.problem for entry in found.entries}
    assert problems.pop("good") is None
    for name, says in (("cut", "cut off"), ("page", "web page"), ("strange", "empty")):
        assert says in str(problems[name])
    assert "embedding" in str(problems["emb"])
    assert "to_q: is VeRA: not supported" in str(problems["vera"])
    assert f"holds no layer known here: {layer} (gralora_A)" in str(problems["new"])
    cut = found.find("cut")
    assert cut is not None
    with pytest.raises(FileProblem, match="cut off"):
        _ = cut.metadata


def test_only_new_and_changed_files_are_opened(
    tmp_path: Path, content: bytes, opened: list[Path]
) -> None:
    nets, cache = tmp_path / "nets", tmp_path / "cache"
    first = put(nets / "a.safetensors", content)
    second = put(nets / "b.safetensors", content)
    made = library(nets, cache=cache)
    entry = made.find("a")
    made.refresh()
    assert made.find("a") is entry
    assert opened == [first, second]
    library(nets, cache=cache)  # another start of the program
    assert len(opened) == 2
    first.unlink()
    os.utime(second, ns=(5, 5))
    third = put(nets / "c.safetensors", content[:-1])
    made.refresh()
    assert opened[2:] == [second, third]
    assert made.find("a") is None
    assert [item.name for item in made.entries] == ["b", "c"]
    third.write_bytes(content)
    made.refresh()
    repaired = made.find("c")
    assert repaired is not None
    assert repaired.problem is None


def test_thousands_of_files(tmp_path: Path, content: bytes, opened: list[Path]) -> None:
    nets, cache = tmp_path / "nets", tmp_path / "cache"
    nets.mkdir()
    first = put(nets / "n0000.safetensors", content)
    for number in range(1, 2000):
        os.link(first, nets / f"n{number:04}.safetensors")
    progress: list[tuple[int, int]] = []
    made = Library([nets], cache)
    made.refresh(lambda done, total: progress.append((done, total)))
    assert len(made.entries) == len(opened) == 2000
    assert progress[-1] == (2000, 2000)
    made.refresh()
    again = library(nets, cache=cache)
    assert len(again.entries) == 2000
    assert len(opened) == 2000
    assert again.find("n1999") is again.entries[-1]


def test_a_corrupt_cache_only_costs_time(
    tmp_path: Path, content: bytes, opened: list[Path]
) -> None:
    put(tmp_path / "nets" / "a.safetensors", content)
    put(tmp_path / "cache" / "files.sqlite", b"garbage" * 500)
    for _ in range(2):
        assert len(library(tmp_path / "nets", cache=tmp_path / "cache").entries) == 1
    assert len(opened) == 1


def test_files_beside(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "a.safetensors", content)
    made = library(tmp_path)
    entry = made.find("a")
    assert entry is not None
    assert (entry.preview, entry.description, entry.user) == (None, "", {})
    put(tmp_path / "a.preview.png", b"p")
    put(tmp_path / "a.description.txt", "später\n".encode())
    made.refresh()
    entry = made.find("a")
    assert entry is not None
    assert entry.preview == tmp_path / "a.preview.png"
    assert entry.description == "später"
    put(tmp_path / "a.webp", b"p")
    put(tmp_path / "a.txt", b"first")
    made.refresh()
    entry = made.find("a")
    assert entry is not None
    assert entry.preview == tmp_path / "a.webp"
    assert entry.description == "first"
    put(path.with_suffix(".json"), b'{"description": "from json", "notes": "n"}')
    made.refresh()
    entry = made.find("a")
    assert entry is not None
    assert (entry.description, entry.user["notes"]) == ("from json", "n")


def test_user_metadata_keeps_unknown_keys(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "a.safetensors", content)
    beside = put(tmp_path / "a.json", b'\xef\xbb\xbf{"mine": [1], "notes": "old", "gone": 1}')
    made = library(tmp_path)
    entry = made.find("a")
    assert entry is not None
    assert entry.user["notes"] == "old"
    entry.write_user({"notes": "new", "preferred weight": 0.7, "gone": None})
    expected = {"mine": [1], "notes": "new", "preferred weight": 0.7}
    assert json.loads(beside.read_text()) == entry.user == expected
    made.refresh()
    entry = made.find("a")
    assert entry is not None
    assert entry.user == expected
    for broken in (b"{", b"[1]", b'{"a": ' * 100_000):
        beside.write_bytes(broken)
        made.refresh()
        entry = made.find("a")
        assert entry is not None
        with pytest.raises(FileProblem, match=r"a\.json"):
            _ = entry.user
        with pytest.raises(FileProblem, match=r"a\.json"):
            entry.write_user({"notes": "x"})
        assert beside.read_bytes() == broken


def test_hashes_find_a_network(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "bad.safetensors", b"")
    put(tmp_path / "good.safetensors", content)
    made = library(tmp_path)
    entry = made.find("good")
    assert entry is not None
    assert len(entry.short_hash) == 12
    assert made.find_hash(entry.short_hash.upper()) is entry
    assert made.find_hash("0" * 12) is None
    assert made.find_hash("") is None
