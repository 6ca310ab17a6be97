"""The manifest, and taggers found in folders as people put them there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extensions_lib.errors import FileProblem
from extensions_lib.tagging.manifest import SHIPPED, contract_of, entries, find_entry, known


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x", encoding="utf-8")
    return folder


def test_the_manifest_is_whole(tmp_path: Path) -> None:
    there = known()
    assert len(there) == len({entry.name for entry in there}) >= 22
    for entry in there:
        assert entry.model and entry.title and entry.thresholds.get("general")
        assert entry.repo or entry.url
        assert entry.tags or entry.kind == "torch"
        assert find_entry(entry.name, tmp_path) == entry
    names = [name.casefold() for entry in there for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))


def test_contracts_are_the_authors() -> None:
    """One fact that sets each family apart from the others."""
    told = {
        family: contract_of(family)
        for family in ("wd", "timm", "ml-danbooru", "joytag", "pixai", "camie", "cl")
    }
    assert (told["wd"].layout, told["wd"].colour, told["wd"].range) == ("NHWC", "BGR", 255)
    assert [told[name].colour for name in ("timm", "cl", "pixai")] == ["BGR", "BGR", "RGB"]
    assert {name for name in told if told[name].fit == "squash"} == {"ml-danbooru", "pixai"}
    assert {name for name in told if not told[name].logits} == {"wd", "pixai"}
    assert told["camie"].output == 1 and told["camie"].ground == (124, 116, 104)
    assert told["joytag"].mean[0] == 0.48145466 and told["camie"].mean[0] == 0.485


def test_names_that_others_use_are_known(tmp_path: Path) -> None:
    for name in ("wd14-vit-v2", "wd14-vit.v2", "SmilingWolf/wd-v1-4-vit-tagger-v2"):
        assert find_entry(name, tmp_path).name == "wd-v1-4-vit-tagger-v2"
    assert find_entry("WD-SwinV2-Tagger-v3", tmp_path).title == "WD v3 SwinV2"
    assert find_entry("mld-caformer.dec-5-97527", tmp_path).contract.fit == "squash"
    with pytest.raises(
        FileProblem, match=r"There is no tagger 'wd15'\. There are demo-tagger, wd-eva02"
    ):
        find_entry("wd15", tmp_path)


@pytest.mark.parametrize("shelf", ["", "tagger", "TaggerOnnx"])
def test_a_known_model_in_a_folder_of_its_name(shelf: str, tmp_path: Path) -> None:
    folder = touch(tmp_path / shelf / "wd-vit-tagger-v3", "model.onnx", "selected_tags.csv")
    first = entries(tmp_path)[0]
    assert (first.name, first.folder, first.balanced) == ("wd-vit-tagger-v3", folder, 0.2614)
    assert sum(entry.name == "wd-vit-tagger-v3" for entry in entries(tmp_path)) == 1


def test_half_a_model_is_none(tmp_path: Path) -> None:
    touch(tmp_path / "wd-vit-tagger-v3", "model.onnx")
    touch(tmp_path / "notes", "tags.txt")
    assert [entry.name for entry in entries(tmp_path) if entry.folder] == ["demo-tagger"]


def test_the_demo_is_there_in_any_webui(tmp_path: Path) -> None:
    demo = find_entry("demo-tagger", tmp_path)
    assert demo.folder == SHIPPED and demo.contract.size == 128
    touch(tmp_path / "demo-tagger", "model.onnx", "selected_tags.csv")
    assert find_entry("demo-tagger", tmp_path).folder == tmp_path / "demo-tagger"
    names = [entry.name for entry in entries(SHIPPED.parent)]
    assert names.count("demo-tagger") == 1


GUESSES = {
    "selected_tags.csv": "wd",
    "tags-selected.csv": "z3d",
    "tag_mapping.json": "cl",
    "some-metadata.json": "camie",
    "top_tags.txt": "joytag",
    "classes.json": "ml-danbooru",
    "tags.txt": "deepdanbooru",
}


@pytest.mark.parametrize("tags", GUESSES)
def test_any_folder_with_a_model_and_a_list(tags: str, tmp_path: Path) -> None:
    touch(tmp_path / "mine", "net.onnx", tags)
    entry = find_entry("mine", tmp_path)
    assert (entry.family, entry.model, entry.tags) == (GUESSES[tags], "net.onnx", tags)
    assert entry.contract.logits is None  # read off its scores
    assert entry == find_entry(str(tmp_path / "mine"), Path("elsewhere"))


def test_deepdanbooru_projects_and_the_torch_file(tmp_path: Path) -> None:
    touch(tmp_path / "deepdanbooru" / "v3-sgd", "project.json", "tags.txt", "model.onnx")
    touch(tmp_path / "torch_deepdanbooru", "model-resnet_custom_v3.pt")
    assert find_entry("v3-sgd", tmp_path).contract.interpolation == "area"
    torch_one = find_entry("deepbooru", tmp_path)
    assert torch_one.kind == "torch" and torch_one.folder == tmp_path / "torch_deepdanbooru"


def test_an_own_entry_says_what_differs(tmp_path: Path) -> None:
    folder = touch(tmp_path / "mine", "a.onnx", "b.txt")
    own = {
        "title": "My tagger",
        "family": "joytag",
        "model": "a.onnx",
        "tags": "b.txt",
        "size": 320,
        "mean": [0.5, 0.5, 0.5],
        "thresholds": {"general": 0.2},
        "categories": {"0": "general", "1": "style"},
    }
    (folder / "crucible-tagger.json").write_text(json.dumps(own), encoding="utf-8")
    entry = find_entry("my tagger", tmp_path)
    assert entry.contract.size == 320 and entry.contract.mean == (0.5, 0.5, 0.5)
    assert entry.contract.std == contract_of("joytag").std
    assert entry.thresholds == {"general": 0.2} and entry.categories["1"] == "style"


WRONG = [
    ('{"layuot": "NHWC"}', "there is no key 'layuot'; is it layout?"),
    ('{"layout": "HWC"}', 'layout takes one of "NHWC", "NCHW", null, not "HWC"'),
    ('{"family": "wd9"}', "family 'wd9' is none; there are wd, "),
    ('{"std": [1, 0, 1]}', "std takes three numbers"),
    ('{"size": "448"}', "size takes pixels from 8 to 4096"),
    ('{"thresholds": {"general": "high"}}', "thresholds takes an object"),
    ('{"model": 3}', "model takes text, not 3"),
    ("{", "is not JSON"),
    ("[]", "holds no JSON object"),
]


@pytest.mark.parametrize(("content", "said"), WRONG)
def test_a_wrong_entry_is_said_and_spoils_no_other(content: str, said: str, tmp_path: Path) -> None:
    folder = touch(tmp_path / "mine", "model.onnx", "selected_tags.csv")
    (folder / "crucible-tagger.json").write_text(content, encoding="utf-8")
    problems: list[str] = []
    assert len(entries(tmp_path, problems)) == len(known()) + 1  # the demo
    [problem] = problems
    assert problem.startswith(f"{folder / 'crucible-tagger.json'}: ") and said in problem
    with pytest.raises(FileProblem, match="crucible-tagger"):
        find_entry("mine", tmp_path)


def test_a_known_model_in_the_folder_that_sd_scripts_makes(tmp_path: Path) -> None:
    folder = tmp_path / "tagger" / "SmilingWolf_wd-vit-tagger-v3"
    touch(folder, "model.onnx", "selected_tags.csv")
    found = find_entry("wd-vit-tagger-v3", tmp_path)
    assert found.folder == folder and found.balanced == 0.2614
