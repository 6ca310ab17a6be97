"""Folders of captioners: what is read, what is refused, and by which names they are found."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.errors import FileProblem
from extensions_lib.options import table
from extensions_lib.tagging import captioners, interrogator, pretrained
from extensions_lib.tagging.captioners import CaptionOptions, entries, load_captioner
from tests.tagging.tiny_captioners import KINDS, config, made, pictures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def models(folders: dict[str, Path]) -> Path:
    return folders["blip"].parents[1]


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the GIT folder, to break."""
    return Path(shutil.copytree(folders["git"], tmp_path / "captioners" / "mine"))


def test_pickles_and_parts_say_the_same(folders: dict[str, Path], broken: Path) -> None:
    images = pictures(3)
    expected = made(broken, beams=1).caption(images)
    weights = pretrained.read_weights([broken / "model.safetensors"])
    (broken / "model.safetensors").unlink()
    torch.save(weights, broken / "pytorch_model.bin")
    assert made(broken, beams=1).caption(images) == expected
    (broken / "pytorch_model.bin").unlink()
    names = sorted(weights)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for part, held in parts.items():
        torch.save({name: weights[name] for name in held}, broken / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (broken / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert made(broken, beams=1).caption(images) == expected
    (broken / "b.bin").unlink()
    with pytest.raises(FileProblem, match=r"mine: 1 of 2 files of weights are missing: b\.bin"):
        made(broken)
    index["weight_map"][names[0]] = "../a.bin"
    (broken / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(FileProblem, match=r"names '\.\./a\.bin', which is not a file beside it"):
        made(broken)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_cut_off_are_named(broken: Path, name: str, share: float) -> None:
    if name.endswith(".bin"):
        weights = pretrained.read_weights([broken / "model.safetensors"])
        (broken / "model.safetensors").unlink()
        torch.save(weights, broken / name)
    size = (broken / name).stat().st_size
    with open(broken / name, "r+b") as stream:
        stream.truncate(int(size * share))
    with pytest.raises(FileProblem, match=f"mine/{name}: is damaged or cut off .*; get it again"):
        made(broken)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)


def test_pickles_that_do_more_than_hold_tensors_are_refused(
    broken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (broken / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, broken / "pytorch_model.bin")
    with pytest.raises(FileProblem, match="holds more than tensors, and is not opened"):
        made(broken)
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileProblem, match=r"pytorch_model\.bin"):
        made(broken)
    assert not (tmp_path / "evil-was-here").exists()


def test_folders_that_cannot_be_used_are_said_by_name(broken: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(FileProblem, match=said) as raised:
            made(broken)
        assert str(broken) in str(raised.value) and "\n" not in str(raised.value)

    config(broken, hidden_size=48)
    refused("its weights do not fit its config")
    config(broken, hidden_size=32, num_hidden_layers=3)
    refused(r"the weights lack 16 tensors that GitForCausalLM needs, as git\.encoder")
    config(broken, model_type="bert")
    refused("kind of model 'bert', which is no captioner")
    config(broken, model_type="nothing-like-it", auto_map={"AutoConfig": "evil.Config"})
    refused("kind of model 'nothing-like-it'")
    config(broken, model_type="git", num_hidden_layers=2)
    keep = (broken / "preprocessor_config.json").read_text()
    (broken / "preprocessor_config.json").unlink()
    refused(r"preprocessor_config\.json: is missing")
    (broken / "preprocessor_config.json").write_text(keep)
    (broken / "vocab.txt").unlink()
    refused("its tokenizer cannot be used")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (broken / "model.safetensors").write_text(pointer)
    refused("is a Git LFS pointer")
    (broken / "model.safetensors").unlink()
    refused(r"has no weights; put model\.safetensors or pytorch_model\.bin")
    (broken / "config.json").write_text("{")
    refused(r"config\.json: is not JSON")
    (broken / "config.json").unlink()
    refused(r"config\.json: is missing")


def test_a_class_that_is_not_there_is_said(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    config(broken, model_type="from-tomorrow")
    known = {"from-tomorrow": "TomorrowForConditionalGeneration"}
    monkeypatch.setattr(modeling_auto, "MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES", known)
    said = rf"needs transformers with Tomorrow.*{transformers.__version__} is installed"
    with pytest.raises(FileProblem, match=said):
        made(broken)


def test_local_folders_are_offered_by_name(models: Path, tmp_path: Path) -> None:
    found = {each.name: each for each in entries(models)}
    assert set(KINDS) < set(found) and found["git"].folder == models / "captioners" / "git"
    assert found["blip-large"].gigabytes == 1.88 and found["blip-large"].folder is None
    assert load_captioner("git", models, CaptionOptions(beams=1)).caption(pictures(1))[0]
    empty = {each.name for each in entries(tmp_path)}
    assert "blip-base" in empty and "git" not in empty


def test_known_models_are_found_by_either_name(folders: dict[str, Path], tmp_path: Path) -> None:
    shelf = tmp_path / "captioners"
    shutil.copytree(folders["blip"], shelf / "blip-image-captioning-base")
    by_repo = load_captioner("Salesforce/blip-image-captioning-base", tmp_path)
    assert by_repo.revision == load_captioner("blip-base", tmp_path).revision
    assert [each.name for each in entries(tmp_path)].count("blip-base") == 1
    assert "blip-image-captioning-base" not in [each.name for each in entries(tmp_path)]


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no model 'blip-lrage'; did you mean blip-large"):
        load_captioner("blip-lrage", tmp_path)
    for name in ("../captioners", "/", "."):
        with pytest.raises(FileProblem, match="There is no model"):
            load_captioner(name, tmp_path)


def test_the_documentation_has_every_option_and_model() -> None:
    page = (ROOT / "docs" / "captioning.md").read_text("utf-8")
    for kind in (CaptionOptions, interrogator.InterrogateOptions):
        assert table(kind) in page
    for shelf, module in (("captioners", captioners), ("interrogator", interrogator)):
        for model in module.KNOWN:
            folder = f"`models/{shelf}/{model.name}`"
            assert f"| `{model.name}` | {model.repo} | {model.gigabytes:g} | {folder} |" in page


def test_building_a_page_loads_no_runtime() -> None:
    code = (
        "import sys, extensions_lib.tagging.captioners, extensions_lib.tagging.interrogator;"
        "heavy = {'torch', 'transformers', 'safetensors', 'PIL', 'numpy', 'huggingface_hub'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
