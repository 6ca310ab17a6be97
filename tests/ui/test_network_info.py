"""The popup about a network: what it tells, what it refuses, and that nothing gets in unescaped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from extensions_lib.errors import FileProblem
from extensions_lib.files.safe import write_safetensors
from extensions_lib.library import Entry, Library
from extensions_lib.models.families import SD15, SDXL_BASE, Structure
from extensions_lib.models.names import canonical_layers
from extensions_lib.toolbox.metadata import TAGS_SHOWN, frequent_tags
from extensions_lib.ui.cards import cards_html
from extensions_lib.ui.file_report import LISTED, match
from extensions_lib.ui.generate_tab import Room
from extensions_lib.ui.network_info import (
    about,
    about_html,
    hashes_html,
)
from extensions_lib.ui.networks_panel import Shelf
from extensions_lib.ui.standalone import add_network_routes
from tests.tiny import tiny_checkpoint

EVIL = "\"'><script>evil()</script></title>"
ROOT = Path(__file__).resolve().parents[2]
Shape = tuple[int, ...]


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def lora(structure: Structure = SD15, rank: int = 4) -> dict[str, Shape]:
    """Names and shapes of a LoRA on the cross attention's keys."""
    shapes: dict[str, Shape] = {}
    for layer, info in canonical_layers(structure).items():
        if layer.startswith("unet.") and layer.endswith("attn2.to_k"):
            name = "lora_unet_" + layer.removeprefix("unet.").replace(".", "_")
            shapes[f"{name}.lora_down.weight"] = (rank, info.shape[1])
            shapes[f"{name}.lora_up.weight"] = (info.shape[0], rank)
    return shapes


def written(
    path: Path, shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None
) -> None:
    write_safetensors(path, {key: torch.zeros(shape) for key, shape in shapes.items()}, metadata)


def entry_of(
    path: Path,
    shapes: Mapping[str, Shape] | None = None,
    metadata: Mapping[str, str] | None = None,
    user: object = None,
) -> Entry:
    """The library's entry for a file that this writes."""
    written(path, lora() if shapes is None else shapes, metadata)
    if user is not None:
        path.with_suffix(".json").write_text(json.dumps(user), encoding="utf-8")
    library = Library([path.parent])
    library.refresh()
    found = library.find(path.stem)
    assert found is not None
    return found


def test_it_tells_what_the_file_and_the_person_say(tmp_path: Path) -> None:
    tags = json.dumps({"10_a": {"cat": 3, "red, hat": 9}, "5_b": {"cat": 7}})
    metadata = {"ss_tag_frequency": tags, "modelspec.trigger_phrase": "mycat"}
    user = {
        "activation text": "furry",
        "preferred weight": 0.8,
        "notes": "soft",
        "description": "d",
    }
    html = about_html(about(entry_of(tmp_path / "n.safetensors", None, metadata, user), None))
    said = plain(html)
    assert "File n.safetensors" in said
    assert "Kind LoRA Rank 4 Base SD1 Names kohya Layers 16 in the UNet" in said
    assert "Preferred weight 0.8" in said
    assert re.findall(r'data-insert="([^"]*)"', html) == ["furry", "mycat", "cat", "red, hat"]
    assert "cat 10" in said and "red, hat 9" in said
    assert "Notes d soft" in said
    assert "crucible-error" not in html


def test_nothing_from_a_file_gets_in_unescaped(tmp_path: Path) -> None:
    shapes = {**lora(), f"lora_unet_{EVIL}.lora_up.weight": (4, 4)}
    metadata = {
        "ss_output_name": EVIL,
        "ss_tag_frequency": json.dumps({EVIL: {EVIL: 2}}),
        "modelspec.trigger_phrase": EVIL,
    }
    user = {"activation text": f"a {EVIL}", "notes": EVIL, "description": EVIL + "2"}
    folder = tmp_path / "a'><b>\"&"
    entry = entry_of(folder / "'\"><b>&.safetensors", shapes, metadata, user)
    html = about_html(about(entry, None)) + hashes_html(entry)
    shelf = Shelf(Library([tmp_path]))
    shelf.library.refresh()
    html += cards_html(shelf.cards("SD1"), [tmp_path], EVIL)
    assert "evil()" in html
    assert "<script" not in html and "<b>&" not in html and "</title" not in html
    # No attribute is broken out of either: every quote of the file's is written as &quot;.
    assert not re.search(r"=\"[^\"]*\"['>]*<(?:script|b>&)", html)


def test_a_card_names_the_folder_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "n.safetensors"
    written(path, lora())
    os.utime(path, (1.6e9, 1.6e9))
    shelf = Shelf(Library([tmp_path]))
    shelf.library.refresh()
    (card,) = shelf.cards("SD1")
    assert (card.folder, card.path, card.changed) == ("x/y", str(path), 1_600_000_000)
    assert shelf.entry(card.path) is shelf.library.entries[0]
    assert shelf.entry("/etc/passwd") is None


@pytest.mark.parametrize("structure", [SD15, SDXL_BASE], ids=["SD1", "SDXL"])
def test_layers_are_held_against_the_checkpoint(structure: Structure) -> None:
    shapes = {**lora(structure), "lora_unet_nowhere.lora_up.weight": (4, 4)}
    first = next(iter(shapes))
    shapes[first] = (4, 7)
    found = match(shapes, structure)
    assert found.fitting == len(lora(structure)) // 2 - 1
    assert len(found.strange) == 1 and "another size" in found.strange[0]
    other = match(lora(structure), SDXL_BASE if structure is SD15 else SD15)
    assert other.fitting == 0 and len(other.strange) == len(lora(structure)) // 2


ODD = {
    "lora_unet_nowhere.lora_up.weight": (4, 4),
    "lora_unet_up_blocks_1_attentions_0_proj_in.lora_up.weight": (4, 4),
    "lora_ema.x.lora_up.weight": (4, 4),
    "bundle_emb.mycat.emb_params": (2, 768),
}


def test_what_of_a_file_is_no_use_is_counted_and_listed(tmp_path: Path) -> None:
    first = next(iter(lora()))
    shapes = {**lora(), **ODD, first: (4, 7)}
    checkpoint = tmp_path / "models" / "c.safetensors"
    tiny_checkpoint(checkpoint)
    entry = entry_of(tmp_path / "n.safetensors", shapes)
    alone, told = (about_html(about(entry, each)) for each in (None, checkpoint))
    count = len(lora()) // 2
    assert f"Layers {count} in the UNet · 1 not understood · 1 left out Emb" in plain(alone)
    assert "Embeddings in it mycat" in plain(alone)
    assert "checkpoint" not in plain(alone)
    assert "1 left out none fits Emb" in plain(told)  # all of them have other widths
    lists = dict(re.findall(r"<summary><span>(.*?)</span>.*?</summary>(.*?)</details>", told))
    assert list(lists) == [
        "Not understood",
        "Left out",
        "Layers that do not fit",
        "How it was read",
    ]
    assert "lora_unet_nowhere" in lists["Not understood"]
    assert "proj_in: has lora_up.weight without lora_down.weight" in lists["Left out"]
    assert lists["Layers that do not fit"].count("<li>") == count
    assert "1 averaged (EMA)" in lists["How it was read"]


def test_a_long_list_says_how_much_more_there_is(tmp_path: Path) -> None:
    shapes = {f"lora_unet_nowhere_{n}.lora_up.weight": (4, 4) for n in range(LISTED + 7)}
    html = about_html(about(entry_of(tmp_path / "n.safetensors", {**lora(), **shapes}), None))
    assert html.count("<li>") == LISTED + 1 and "… + 7" in html and f"({LISTED + 7})" in html


def test_a_network_for_another_family_says_so(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    shapes = {f"{name}.lora_up.weight": (9, 4), f"{name}.lora_down.weight": (4, 3)}
    said = plain(about_html(about(entry_of(tmp_path / "n.safetensors", shapes), None)))
    assert "Base Flux cannot be used here" in said
    assert "Not understood (1)" in said


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("", []),
        ("{}", []),
        ('{"a": {"x": 1, "y": 2, "z": 2}}', [("y", 2), ("z", 2), ("x", 1)]),
        ('{"a": {"x": "1", "y": -2, "z": null, " ": 3}, "b": [1], "c": 5}', []),
        ('{"a": {"x": ' + "9" * 400 + ', "y": 1e400}}', []),
    ],
)
def test_frequent_tags(text: str, tags: list[tuple[str, int]]) -> None:
    assert frequent_tags(text) == tags


def test_only_the_most_frequent_tags_are_shown() -> None:
    text = json.dumps({"a": {f"t{n}": n for n in range(1, 50)}})
    found = frequent_tags(text)
    assert len(found) == TAGS_SHOWN and found[0] == ("t49", 49)


@pytest.mark.parametrize(
    "text", ["[]", "{", "nonsense", "[" * 100_000, '{"a": {"x": ' + "9" * 9999]
)
def test_tags_that_are_none_are_said(text: str) -> None:
    with pytest.raises(FileProblem, match="ss_tag_frequency"):
        frequent_tags(text)


def test_what_cannot_be_read_is_said_and_the_rest_is_told(tmp_path: Path) -> None:
    metadata = {"ss_tag_frequency": "{"}
    entry = entry_of(tmp_path / "n.safetensors", None, metadata, user=[1])
    wrong = tmp_path / "checkpoint.safetensors"
    wrong.write_bytes(b"<!doctype html>")
    told = about(entry, wrong)
    html = about_html(told)
    assert len(told.problems) == 3  # notes, tags, checkpoint
    assert html.count("<li>") == 3 and "Kind LoRA" in plain(html)
    entry.path.unlink()
    assert "no such file" in about_html(about(entry, None))
    assert "crucible-error" in hashes_html(entry)


def test_a_broken_file_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "page.safetensors"
    path.write_bytes(b"<!doctype html><title>Log in</title>")
    library = Library([tmp_path])
    library.refresh()
    html = about_html(about(library.entries[0], None))
    assert html.count("<li>") == 1 and "web page" in html and "Kind" not in html


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """The room of a page with one network and one checkpoint that is none."""
    tags = json.dumps({"a": {"\ud83d x": 1}})
    entry_of(tmp_path / "Lora" / "n.safetensors", None, {"ss_tag_frequency": tags})
    checkpoint = tmp_path / "c.safetensors"
    checkpoint.write_bytes(b"<!doctype html>")
    shelf = Shelf(Library([tmp_path / "Lora"]))
    shelf.library.refresh()
    return Room(None, shelf, None, lambda: [checkpoint])  # type: ignore[arg-type]


def test_only_networks_and_offered_checkpoints_are_opened(room: Room, tmp_path: Path) -> None:
    app = FastAPI()
    add_network_routes(app, room)
    client = TestClient(app)
    (entry,) = room.shelf.library.entries
    (checkpoint,) = room.checkpoints()

    def asked(route: str = "", **query: str) -> str:
        answer = client.get(f"/crucible/network{route}", params=query)
        assert answer.status_code == 200, answer.text
        return str(answer.text)

    path = str(entry.path)
    assert "? x" in asked(file=path)  # half a character, which no encoding has
    assert "web page" in asked(file=path, checkpoint=str(checkpoint))
    assert "web page" not in asked(file=path, checkpoint=str(tmp_path / "other.safetensors"))
    assert "not among the networks" in asked(file=str(checkpoint))
    assert "not among the networks" in asked("/hashes", file=f"{EVIL}/../c.safetensors")
    assert entry.short_hash in asked("/hashes", file=path)


def test_telling_about_a_network_needs_no_torch(tmp_path: Path) -> None:
    entry_of(tmp_path / "n.safetensors")
    code = (
        "import sys; from pathlib import Path; from extensions_lib.library import Library\n"
        "from extensions_lib.ui.network_info import about, about_html, hashes_html\n"
        "library = Library([Path(sys.argv[1])]); library.refresh()\n"
        "entry = library.entries[0]; about_html(about(entry, None)); hashes_html(entry)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
