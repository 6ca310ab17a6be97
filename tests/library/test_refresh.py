"""What a refresh notices, and what is worked out once for many files."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FileProblem
from extensions_lib.files.header import read_header_text
from extensions_lib.files.safe import read_header, serialised, write_safetensors
from extensions_lib.library import EMBEDDINGS, Library, index, shelf

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(rank: int = 1) -> dict[str, torch.Tensor]:
    return {
        f"{Q}.lora_up.weight": torch.ones(320, rank),
        f"{Q}.lora_down.weight": torch.ones(rank, 768),
    }


def library(folder: Path, cache: Path | None = None) -> Library:
    made = Library([folder], cache)
    made.refresh()
    return made


def test_a_file_written_in_place_is_noticed(tmp_path: Path) -> None:
    """A resumed download: the folder itself does not change."""
    path = tmp_path / "a.safetensors"
    content = b"".join(serialised(lora(), {"ss_output_name": "one"}))
    path.write_bytes(content[:-100])
    made = library(tmp_path)
    assert "cut off" in str(made.entries[0].problem)
    folder = tmp_path.stat().st_mtime_ns
    with path.open("ab") as file:
        file.write(content[-100:])
    os.utime(tmp_path, ns=(folder, folder))
    made.refresh()
    assert made.entries[0].problem is None and made.find("one") is made.entries[0]


def test_notes_written_in_place_are_noticed(tmp_path: Path) -> None:
    for name in "ab":
        write_safetensors(tmp_path / f"{name}.safetensors", lora())
        (tmp_path / f"{name}.json").write_text('{"activation text": "old"}')
    made = library(tmp_path)
    first, second = made.entries
    assert first.user == {"activation text": "old"}
    folder = tmp_path.stat().st_mtime_ns
    (tmp_path / "a.json").write_text('{"activation text": "newer"}')
    os.utime(tmp_path, ns=(folder, folder))
    made.refresh()
    assert made.entries[0].user == {"activation text": "newer"}
    assert made.entries[1] is second


def test_what_appears_and_goes_in_one_of_many_folders(tmp_path: Path) -> None:
    for place in ("a/1", "a/2", "b/3"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write_safetensors(tmp_path / f"{place}.safetensors", lora())
    made = library(tmp_path, tmp_path / "cache")
    kept = {entry.relative: entry for entry in made.entries}
    write_safetensors(tmp_path / "a" / "0.safetensors", lora(2))
    (tmp_path / "b" / "3.safetensors").unlink()
    (tmp_path / "a" / "2.png").write_bytes(b"p")
    made.refresh()
    assert [entry.relative for entry in made.entries] == ["a/0", "a/1", "a/2"]
    assert made.entries[1] is kept["a/1"] and made.entries[2] is not kept["a/2"]
    assert made.entries[2].preview == tmp_path / "a" / "2.png"
    assert made.find("3") is None
    again = library(tmp_path, tmp_path / "cache")
    assert [entry.relative for entry in again.entries] == ["a/0", "a/1", "a/2"]
    (tmp_path / "a" / "2.png").unlink()
    made.refresh()
    assert made.entries[2].preview is None


def test_a_picture_becomes_a_preview_when_a_network_joins_it(tmp_path: Path) -> None:
    from tests.files.test_embeddings import picture

    picture(tmp_path / "x.png")
    made = Library([tmp_path], None, EMBEDDINGS)
    made.refresh()
    assert [entry.path.name for entry in made.entries] == ["x.png"]
    write_safetensors(tmp_path / "x.safetensors", {"emb_params": torch.zeros(1, 768)})
    made.refresh()
    assert [entry.path.name for entry in made.entries] == ["x.safetensors"]
    (tmp_path / "x.safetensors").unlink()
    made.refresh()
    assert [entry.path.name for entry in made.entries] == ["x.png"]


def test_links_to_files_come_once_the_first_way(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_safetensors(tmp_path / "b" / "real.safetensors", lora())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link.safetensors").symlink_to(tmp_path / "b" / "real.safetensors")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")  # leads nowhere
    made = library(tmp_path)
    assert [entry.relative for entry in made.entries] == ["a/link"]
    assert made.problems == []


def test_like_files_are_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        path = tmp_path / f"{number}.safetensors"
        write_safetensors(path, lora(1 + number % 2), {"ss_output_name": f"alias {number}"})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "0.safetensors").read_bytes()[:-1])
    seen = []
    real = shelf.facts_of
    monkeypatch.setattr(shelf, "facts_of", lambda shapes: seen.append(1) or real(shapes))
    made = library(tmp_path)
    assert len(seen) == 2
    assert [made.find(f"alias {number}") for number in range(6)] == made.entries[:6]
    assert {entry.kind for entry in made.entries[:6]} == {"LoRA"}
    assert "cut off" in str(made.entries[6].problem)


def test_a_hash_is_known_where_it_need_not_be_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = "5" * 64
    write_safetensors(tmp_path / "stated.safetensors", lora(), {"sshs_model_hash": stated})
    write_safetensors(tmp_path / "plain.safetensors", lora(2))
    made = library(tmp_path, tmp_path / "cache")
    plain, told = made.entries
    assert (told.known_hash, plain.known_hash) == (stated, None)
    whole = plain.hash
    assert plain.known_hash == whole
    again = library(tmp_path, tmp_path / "cache")
    assert again.entries[0].known_hash == whole
    monkeypatch.setattr(index, "_HASHED_AT_ONCE", 0)
    assert again.find_hash(whole[:12]) is again.entries[0]
    fresh = library(tmp_path)
    assert fresh.find_hash(whole[:12]) is None  # there are more bytes than it may read
    assert fresh.find_hash(stated[:12]) is fresh.entries[1]
    monkeypatch.setattr(index, "_HASHED_AT_ONCE", 1 << 20)
    assert fresh.find_hash(whole[:12]) is fresh.entries[0]


TENSOR = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
META = '"__metadata__":{"k":"v"}'


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (f"{{{META},{TENSOR}}}", None),
        (f"{{{META}, {TENSOR}}}", None),
        (f"{{{TENSOR},{META}}}", None),
        (f"{{{META},{TENSOR},{META}}}", "occurs twice"),
        (f"{{{META},{TENSOR},{TENSOR}}}", "occurs twice"),
        (f'{{{META},"__metadat\\u0061__":{{}},{TENSOR}}}', "occurs twice"),
        (f"{{{META},}}", "not JSON"),
        (f"{{{META}{TENSOR}}}", "not JSON"),
        (f"{{{META},{TENSOR}", "not JSON"),
        (f'{{"__metadata__":{{"k":1}},{TENSOR}}}', "not a text"),
        (f'{{"__metadata__":{{"k":"1","k":"2"}},{TENSOR}}}', "occurs twice"),
        (f'{{"__metadata__":{{"k":"\\ud800"}},{TENSOR}}}', "not valid Unicode"),
        (f"{{{META}}}", "belong to nothing"),
    ],
)
def test_metadata_is_read_wherever_it_stands(tmp_path: Path, header: str, says: str | None) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"x")
    if says is None:
        assert read_header(path).metadata == read_header_text(path).metadata == {"k": "v"}
        assert read_header(path).shapes == {"a": (1,)}
    else:
        with pytest.raises(FileProblem, match=says):
            read_header(path)


def test_headers_are_equal_by_their_tensors(tmp_path: Path) -> None:
    texts = []
    for number, (rank, metadata) in enumerate([(1, {"a": "b"}), (1, {"c": "d"}), (2, {})]):
        path = tmp_path / f"{number}.safetensors"
        write_safetensors(path, lora(rank), metadata)
        texts.append(read_header_text(path))
    assert texts[0] == texts[1] != texts[2]
    assert json.loads(texts[0].tensors).keys() == lora().keys()


def test_the_search_for_garbage_goes_on_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(index, "_name", lambda _: seen.append(gc.isenabled()) or 1 / 0)
    assert gc.isenabled()
    write_safetensors(tmp_path / "a.safetensors", lora())
    with pytest.raises(ZeroDivisionError):
        library(tmp_path)
    assert seen == [False] and gc.isenabled()
