"""Embeddings, hypernetworks and aesthetic embeddings in the index."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from extensions_lib.library import AESTHETICS, EMBEDDINGS, HYPERNETWORKS, Library, index
from extensions_lib.models.families import Family
from tests.files.test_embeddings import picture
from tests.hyper import hyper_file


def shelved(folder: Path, shelf: object, cache: Path | None = None) -> Library:
    made = Library([folder], cache, shelf)  # type: ignore[arg-type]
    made.refresh()
    return made


def test_embeddings_by_family_with_their_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    (folder / "sub").mkdir(parents=True)
    save_file({"emb_params": torch.zeros(3, 768)}, folder / "one.safetensors")
    save_file({"a": torch.zeros(1024)}, folder / "sub" / "two.safetensors")
    save_file(
        {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, folder / "xl.safetensors"
    )
    torch.save([1], folder / "broken.pt")
    picture(folder / "shown.png")
    for name in ("one.png", "xl.preview.png", "alone.preview.png", "holiday.png"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / name)
    found = {entry.name: entry for entry in shelved(folder, EMBEDDINGS).entries}
    assert set(found) == {"one", "two", "xl", "broken", "shown"}
    assert [found[name].family for name in ("one", "two", "xl")] == [
        Family.SD1,
        Family.SD2,
        Family.SDXL,
    ]
    assert found["one"].widths == {"": 768} and found["one"].vectors == 3
    assert found["one"].preview == folder / "one.png" and found["one"].kind == "Embedding"
    assert found["xl"].preview == folder / "xl.preview.png"
    assert found["shown"].preview == folder / "shown.png" and found["shown"].alias == "inner"
    assert found["broken"].problem
    raw = (folder / "one.safetensors").read_bytes()
    assert found["one"].hash == hashlib.sha256(raw).hexdigest()
    library = shelved(folder, EMBEDDINGS)
    assert library.find("one.safetensors") is library.find("ONE") is not None
    assert library.find("inner") is library.find("shown.png") is not None


def test_pictures_that_hold_nothing_are_searched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "embeddings", tmp_path / "cache"
    folder.mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "holiday.png")
    library = shelved(folder, EMBEDDINGS, cache)
    monkeypatch.setattr(index, "learn", lambda *_: pytest.fail("was opened again"))
    library.refresh()
    assert shelved(folder, EMBEDDINGS, cache).entries == library.entries == []


def test_an_index_that_did_not_change_stays_the_same_object(tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(3, 768)}, tmp_path / "one.safetensors")
    library = shelved(tmp_path, EMBEDDINGS)
    before = library.entries
    library.refresh()
    assert library.entries is before
    save_file({"emb_params": torch.zeros(3, 768)}, tmp_path / "two.safetensors")
    library.refresh()
    assert len(library.entries) == 2 and len(before) == 1


def test_hypernetworks_and_aesthetics(tmp_path: Path) -> None:
    for name, widths in (("one", [320, 768]), ("two", [320, 1024]), ("both", [768, 1024])):
        hyper_file(tmp_path / "h" / f"{name}.pt", widths)
    (tmp_path / "a").mkdir()
    torch.save(torch.ones(1, 768), tmp_path / "a" / "calm.pt")
    torch.save({"x": torch.ones(1), "y": torch.ones(1)}, tmp_path / "a" / "other.pt")
    found = {entry.name: entry for entry in shelved(tmp_path / "h", HYPERNETWORKS).entries}
    assert [found[name].family for name in ("one", "two", "both")] == [
        Family.SD1,
        Family.SD2,
        None,
    ]
    assert set(found["one"].widths.values()) == {320, 768} and found["one"].kind == "Hypernetwork"
    calm, other = shelved(tmp_path / "a", AESTHETICS).entries
    assert calm.kind == "Aesthetic" and calm.widths == {"": 768}
    assert other.problem and "is no aesthetic embedding" in other.problem


def test_one_cache_holds_all_kinds(tmp_path: Path) -> None:
    """The same file can lie on two shelves, and each remembers its own."""
    cache = tmp_path / "cache"
    folder = tmp_path / "files"
    hyper_file(folder / "one.pt", [768])
    assert shelved(folder, HYPERNETWORKS, cache).entries[0].problem is None
    assert shelved(folder, EMBEDDINGS, cache).entries[0].problem is not None
    assert shelved(folder, HYPERNETWORKS, cache).entries[0].problem is None


def test_no_shelf_needs_torch(tmp_path: Path) -> None:
    hyper_file(tmp_path / "h" / "one.pt", [768])
    (tmp_path / "e").mkdir()
    picture(tmp_path / "e" / "shown.png")
    torch.save({"string_to_param": {"*": torch.zeros(1, 768)}}, tmp_path / "e" / "one.pt")
    code = (
        "import sys; from pathlib import Path; from extensions_lib import library as l;"
        "from extensions_lib.library import Library;"
        "made = [Library([Path(sys.argv[1]) / 'h'], None, l.HYPERNETWORKS),"
        " Library([Path(sys.argv[1]) / 'e'], None, l.EMBEDDINGS)];"
        "[each.refresh() for each in made];"
        "assert [len(each.entries) for each in made] == [1, 2];"
        "assert not any(e.problem for each in made for e in each.entries);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2]
    )
