"""What else a file may be, where it belongs, and what its metadata say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.files.networks import write_network
from extensions_lib.models.families import SDXL_REFINER
from extensions_lib.models.names import checkpoint_shapes
from extensions_lib.toolbox.convert import Converting, convert
from extensions_lib.toolbox.inspect import inspect
from extensions_lib.toolbox.metadata import page_of
from extensions_lib.toolbox.places import move_there
from extensions_lib.toolbox.survey import survey
from extensions_lib.training.state import save_state
from tests.files.broken import Calls
from tests.tiny import tiny_checkpoint
from tests.toolbox.networks import K, Q, lora, noise, written
from tests.toolbox.test_inspect import hollow


def test_a_checkpoint_in_detail(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors", "SD2", v_pred=True)
    told = inspect(path).text()
    assert "precision fp16" in told and "predicts v_prediction" in told and "not pruned: 2" in told
    assert "models/Stable-diffusion" in told
    tensors = load_file(path) | {"model_ema.decay": torch.ones(1), "mine": torch.ones(1)}
    tensors["model.diffusion_model.out.2.weight"] = tensors["model.diffusion_model.out.2.weight"].float()  # fmt: skip  # noqa: E501
    del tensors["v_pred"]
    save_file(tensors, path)
    report = inspect(path, hashes=False)
    assert "precision fp16, fp32" in report.details
    assert any("EMA" in line for line in report.details)
    assert any("does not tell" in line for line in report.details)
    assert report.notes == ["1 tensors belong to no layer, as mine"]


def test_the_refiner(tmp_path: Path) -> None:
    path = hollow(tmp_path / "m.safetensors", checkpoint_shapes(SDXL_REFINER))
    assert inspect(path, hashes=False).what == "Checkpoint SDXL refiner"


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors")
    folder = convert(path, Converting(to="diffusers")).path
    report = inspect(folder)
    assert (report.what, report.problems) == ("Diffusers folder SD1", [])
    (folder / "unet" / "config.json").unlink()
    [problem] = inspect(folder).problems
    assert "config.json" in problem
    with pytest.raises(FileProblem, match="model_index"):
        inspect(tmp_path)


CROSS = "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
MOMENTS = {"hash": "x", "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}}


@pytest.mark.parametrize(
    ("tensors", "what", "place"),
    [
        (torch.ones(1, 768), "Aesthetic embedding", "models/aesthetic_embeddings"),
        ({CROSS: torch.ones(4, 768)}, "ControlNet", "models/ControlNet"),
        (MOMENTS, "Optimizer state", ""),
        ({"decoder.conv_in.weight": torch.ones(8, 16, 3, 3)}, "VAE", "models/VAE"),
        ({"<word>": torch.ones(2, 768)}, "Embedding (textual inversion)", "embeddings"),
    ],
)
def test_other_sorts(tmp_path: Path, tensors: object, what: str, place: str) -> None:
    torch.save(tensors, tmp_path / "n.pt")
    report = inspect(tmp_path / "n.pt")
    assert (report.what, report.place) == (what, place)
    json.loads(report.to_json())
    if what == "VAE":
        assert "16 latent channels" in report.problems[0]


def test_states_of_training(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}}
    state = {"done": 42, "trained": {"a": torch.ones(2)}, "optimizer": optimizer}
    report = inspect(save_state(tmp_path, state, {"name": "n"}, keep=2))
    assert report.what == "Training state" and "step 42" in report.details
    torch.save(MOMENTS, tmp_path / "h.pt.optim")
    assert inspect(tmp_path / "h.pt.optim").what == "Optimizer state"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    held = {"a": torch.ones(2), "b": Calls(marker)}
    torch.save(held, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    report = inspect(tmp_path / "evil.pt")
    assert report.what == "PyTorch pickle with code in it"
    assert "posix.system" in report.problems[0] or "nt.system" in report.problems[0]
    assert len(report.hashes["sha256"]) == 64
    assert not marker.exists()
    with pytest.raises(FileProblem, match="system"):
        convert(tmp_path / "evil.pt")
    assert not marker.exists()


def test_a_network_is_held_against_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "m.safetensors")
    path = written(tmp_path / "n.safetensors", {Q: lora(Q, 2, 1.0, 1), K: lora(K, 2, 1.0, 3)})
    report = inspect(path, checkpoint=checkpoint)
    assert report.fitting == 0 and len(report.strange) == 2
    assert "Do not fit:" in report.text()


def test_metadata_as_a_page() -> None:
    page = page_of(
        {
            "ss_network_dim": "16", "ss_steps": "1200", "ss_learning_rate": "0.0001",
            "ss_training_started_at": "1700000000.5", "modelspec.title": "T", "ss_seed": "None",
            "ss_tag_frequency": json.dumps({"10_a": {"cat": 7, "dog": 2}, "1_b": {"cat": 1}}),
            "ss_bucket_info": json.dumps({"buckets": {
                "0": {"resolution": [512, 768], "count": 3},
                "1": {"resolution": [512, 512], "count": 9}}}),
            "ss_dataset_dirs": json.dumps({"10_a": {"n_repeats": 10, "img_count": 4}}),
        }
    )  # fmt: skip
    assert page.tags == [("cat", 8), ("dog", 2)]
    assert page.buckets == [("512 × 512", 9), ("512 × 768", 3)]
    assert page.folders == [("10_a", 10, 4)]
    assert ("Started", "2023-11-14 22:13 UTC") in page.sections["Training"]
    assert not any(label == "Seed" for label, _ in page.sections["Training"])
    told = "\n".join(page.lines())
    assert "cat 8" in told and "10_a: 4 pictures × 10" in told


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 1}', '{"a": {"b": []}}', "null", '{"buckets": 3}', "[" * 50_000]
)
def test_metadata_that_are_broken(text: str) -> None:
    keys = ("ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_training_started_at")
    page_of(dict.fromkeys(keys, text)).lines()
    assert page_of({"ss_training_started_at": "1e300"}).lines()


def test_a_file_is_moved_where_it_belongs(tmp_path: Path) -> None:
    webui = tmp_path / "webui"
    (webui / "models").mkdir(parents=True)
    path = written(tmp_path / "n.safetensors", {Q: lora(Q, 2, 1.0, 1)})
    (tmp_path / "n.preview.png").write_bytes(b"png")
    (tmp_path / "nn.json").write_text("not its own")
    report = inspect(path, hashes=False)
    target = move_there(report, webui)
    assert target == webui / "models" / "Lora" / "n.safetensors"
    assert sorted(p.name for p in target.parent.iterdir()) == ["n.preview.png", "n.safetensors"]
    assert not path.exists() and (tmp_path / "nn.json").exists()
    again = written(tmp_path / "n.safetensors", {K: lora(K, 2, 1.0, 1)})
    before = target.read_bytes()
    with pytest.raises(FileProblem, match="there already"):
        move_there(inspect(again, hashes=False), webui)
    assert again.exists() and target.read_bytes() == before
    assert move_there(inspect(again, hashes=False), webui, number=True).name == "n-2.safetensors"
    save_file({"x": noise(1, 2, 2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(CrucibleError, match="no place"):
        move_there(inspect(tmp_path / "x.safetensors", hashes=False), webui)
    with pytest.raises(FileProblem, match="no WebUI"):
        move_there(report, tmp_path / "elsewhere")


def test_duplicates_by_content(tmp_path: Path) -> None:
    adapters = {Q: lora(Q, 2, 1.0, 1)}
    for name, text in (("a", "one"), ("b/c", "two")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_network(tmp_path / f"{name}.safetensors", adapters, {"ss_comment": text})
    written(tmp_path / "other.safetensors", {Q: lora(Q, 2, 1.0, 7)})
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    found = survey(tmp_path)
    assert found.duplicates == [[tmp_path / "a.safetensors", tmp_path / "b/c.safetensors"]]
    assert found.files[tmp_path / "other.safetensors"] == "LoRA"
    assert "web page" in found.problems[tmp_path / "broken.safetensors"]
    assert "the same content: a.safetensors, b/c.safetensors" in found.lines()
    assert json.dumps(found.to_dict())
