"""Converting: what comes back is what went in, and other programs read what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.files.checkpoints import read_checkpoint
from extensions_lib.files.embeddings import read_embedding
from extensions_lib.files.hypernetworks import read_hypernetwork
from extensions_lib.files.networks import read_network
from extensions_lib.toolbox.convert import Converting, convert
from extensions_lib.toolbox.work import Output
from tests.tiny import tiny_checkpoint
from tests.toolbox.networks import (
    CONV,
    PROJ,
    K,
    Q,
    loha,
    lora,
    metadata_of,
    noise,
    same,
    written,
)

PREDICTS = {"SD2": "epsilon"}
FAMILIES = ["SD1", "SD2", "SDXL"]


# --- file formats -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_as_a_pickle_and_back(tmp_path: Path, family: str) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors", family)
    save_file(load_file(path), path, {"modelspec.title": "T"})
    pickled = convert(path, Converting(to="ckpt")).path
    assert pickled.suffix == ".ckpt"
    assert same(torch.load(pickled, weights_only=True)["state_dict"], load_file(path))
    back = convert(pickled, order=Output(str(tmp_path / "back"))).path
    assert same(load_file(back), load_file(path))
    assert metadata_of(back)["modelspec.title"] == "T"


def test_a_network_as_a_pickle_and_back(tmp_path: Path) -> None:
    path = written(tmp_path / "n.safetensors", {Q: loha(Q, 2, 1), CONV: lora(CONV, 2, 1.0, 5)}, ss_tag_frequency="{}")  # fmt: skip  # noqa: E501
    pickled = convert(path, Converting(to="pt")).path
    assert read_network(pickled).kinds == {"loha": 1, "lora": 1}
    back = convert(pickled, order=Output(str(tmp_path / "back"))).path
    assert same(load_file(back), load_file(path))
    assert metadata_of(back) == metadata_of(path)


def test_a_vae_and_what_is_not_known_keep_every_tensor(tmp_path: Path) -> None:
    for tensors in (
        {"decoder.conv_in.weight": noise(1, 8, 4, 3, 3), "loss.logvar": torch.zeros(())},
        {"something": torch.arange(6), "else": noise(2, 2, 2, 2)},
    ):
        torch.save({"state_dict": tensors}, tmp_path / "v.ckpt")
        done = convert(tmp_path / "v.ckpt", order=Output(number=True))
        assert same(load_file(done.path), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embeddings(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "word.safetensors"
    for parts in (
        {"emb_params": noise(1, 3, 768).to(dtype)},
        {"clip_l": noise(1, 2, 768).to(dtype), "clip_g": noise(2, 2, 1280).to(dtype)},
    ):
        save_file(parts, path, {"step": "400", "sd_checkpoint_name": "base"})
        pickled = convert(path, Converting(to="pt"), Output(number=True)).path
        back = convert(pickled, order=Output(str(tmp_path / "back"), True)).path
        assert same(load_file(back), parts)
        if len(parts) == 1:
            assert read_embedding(back).step == 400
            assert read_embedding(pickled).checkpoint == "base"


def test_hypernetworks(tmp_path: Path) -> None:
    def mlp(width: int, seed: int) -> dict[str, torch.Tensor]:
        shapes = {"linear.0": (2 * width, width), "linear.2": (width, 2 * width)}
        return {
            f"{name}.{part}": noise(seed + i, *shape[: 2 if part == "weight" else 1])
            for i, (name, shape) in enumerate(shapes.items())
            for part in ("weight", "bias")
        }

    saved: dict[Any, Any] = {
        320: (mlp(320, 1), mlp(320, 2)), 768: (mlp(768, 3), mlp(768, 4)),
        "layer_structure": [1, 2, 1], "activation_func": "relu", "is_layer_norm": False,
        "activate_output": False, "name": "H", "step": 7, "optional_info": None,
    }  # fmt: skip
    torch.save(saved, tmp_path / "h.pt")
    flat = convert(tmp_path / "h.pt")
    assert any("convert it back" in note for note in flat.notes)
    back = convert(flat.path, Converting(to="pt"), Output(str(tmp_path / "back"))).path
    loaded = torch.load(back, weights_only=True)
    for key, value in saved.items():
        if isinstance(key, int):
            assert all(same(a, b) for a, b in zip(loaded[key], value, strict=True))
        else:
            assert loaded[key] == value
    assert read_hypernetwork(back).activation == "relu"


# --- prune, precision, EMA --------------------------------------------------------------------


def test_prune_leaves_what_a_model_is(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors", v_pred=True)
    whole = {name: tensor.clone() for name, tensor in load_file(path).items()}
    ema = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): tensor + 1
        for key, tensor in whole.items()
        if key.startswith("model.")
    }
    more = {"optimizer_states.0.exp_avg": torch.ones(2), "global_step": torch.ones(1)}
    torch.save({"state_dict": {**whole, **ema, **more}}, tmp_path / "m.ckpt")
    pruned = load_file(convert(tmp_path / "m.ckpt", Converting(prune=True)).path)
    leftovers = {
        "alphas_cumprod",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    }
    assert same(pruned, {k: v for k, v in whole.items() if k not in leftovers})
    averaged = load_file(convert(tmp_path / "m.ckpt", Converting(prune=True, ema=True)).path)
    assert averaged.keys() == pruned.keys()
    for key, tensor in averaged.items():
        assert torch.equal(tensor, whole[key] + 1 if key.startswith("model.") else whole[key])
    with pytest.raises(CrucibleError, match="no averaged"):
        convert(path, Converting(ema=True))


@pytest.mark.parametrize(("word", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])  # fmt: skip  # noqa: E501
def test_precision(tmp_path: Path, word: str, dtype: torch.dtype) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors")
    before = load_file(path)
    after = load_file(convert(path, order=Output(precision=word)).path)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        whole_number = not before[name].is_floating_point()
        assert torch.equal(tensor, before[name] if whole_number else before[name].to(dtype))


def test_a_hash_that_is_no_longer_true_goes(tmp_path: Path) -> None:
    path = written(tmp_path / "n.safetensors", {Q: lora(Q, 2, 1.0, 1)}, ss_steps="9")
    alone = metadata_of(convert(path, order=Output(precision="bf16")).path)
    assert alone["ss_steps"] == "9" and "sshs_model_hash" not in alone


# --- folders of diffusers ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_diffusers_and_back(tmp_path: Path, family: str) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors", family, v_pred=family == "SDXL")
    how = Converting(to="diffusers", prediction=PREDICTS.get(family))
    done = convert(path, how)
    back = convert(done.path)
    before = {**read_checkpoint(path).tensors}
    if family == "SDXL":
        before["v_pred"] = torch.zeros(0)
    if family == "SD2":  # its last layer never runs, and diffusers has no place for it
        before = {k: v for k, v in before.items() if ".resblocks.2." not in k}
        assert any("never runs" in line for line in done.left_out)
    assert same(load_file(back.path), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_the_folder(tmp_path: Path, family: str) -> None:
    """Its pipeline has the very weights, under the names that diffusers' own classes give them."""
    diffusers = pytest.importorskip("diffusers")
    from extensions_lib.hosts.standalone.load import load_checkpoint

    path = tiny_checkpoint(tmp_path / "m.safetensors", family)
    how = Converting(to="diffusers", prediction=PREDICTS.get(family))
    folder = convert(path, how, Output(precision="fp32")).path
    kind = getattr(diffusers, f"StableDiffusion{'XL' if family == 'SDXL' else ''}Pipeline")
    pipe = kind.from_pretrained(folder, local_files_only=True)
    ours = load_checkpoint(path, device="cpu", dtype=torch.float32)
    for module, mine in ((pipe.unet, ours.unet), (pipe.vae, ours.vae)):
        assert same(module.state_dict(), mine.state_dict())
        assert as_json(module.config) == as_json(mine.config)
    encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    for module, mine in zip(encoders, ours.text_encoders, strict=False):
        runs = module.state_dict()
        assert runs and all(torch.equal(runs[k], mine.state_dict()[k]) for k in runs)
    tokens = pipe.tokenizer("a photo of a cat", padding="max_length")["input_ids"]
    assert len(tokens) == 77 and tokens[0] == 49406


def as_json(config: Any) -> Any:
    return json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))


def test_a_folder_with_other_file_names(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors")
    folder = convert(path, Converting(to="diffusers")).path
    unet, vae, text = (folder / name for name in ("unet", "vae", "text_encoder"))
    weights = load_file(unet / "diffusion_pytorch_model.safetensors")
    names = sorted(weights)
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    listed = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"diffusion_pytorch_model-{number}-of-2.safetensors"
        save_file({name: weights[name] for name in part}, unet / file)
        listed |= dict.fromkeys(part, file)
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))  # fmt: skip  # noqa: E501
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(vae / "diffusion_pytorch_model.safetensors").items():
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        renamed[name] = tensor
    save_file(renamed, vae / "diffusion_pytorch_model.fp16.safetensors")
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(load_file(text / "model.safetensors"), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    assert same(load_file(convert(folder).path), dict(read_checkpoint(path).tensors))


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors")
    folder = convert(path, Converting(to="diffusers")).path
    for spoil, said in (
        (lambda f: (f / "unet" / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "unet" / "config.json").write_text("{}"), "block_out_channels"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "without a text encoder"),
        (lambda f: shorter(f / "unet" / "diffusion_pytorch_model.safetensors"), "lacks conv_in"),
        (lambda f: other_size(f / "unet" / "config.json"), "config says"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        spoil(copy)
        with pytest.raises(FileProblem, match=said):
            convert(copy)
        shutil.rmtree(copy)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m-diffusers", "m.safetensors"]


def shorter(path: Path) -> None:
    save_file({k: v for k, v in load_file(path).items() if k != "conv_in.weight"}, path)


def other_size(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 48}))


def test_sd2_says_what_it_predicts(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m.safetensors", "SD2")
    with pytest.raises(CrucibleError, match="--prediction"):
        convert(path, Converting(to="diffusers"))
    folder = convert(path, Converting(to="diffusers", prediction="v_prediction")).path
    assert "v_pred" in load_file(convert(folder).path)


# --- orders that cannot be --------------------------------------------------------------------


def test_orders_without_meaning(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "m.safetensors")
    network = written(tmp_path / "n.safetensors", {K: lora(K, 2, 1.0, 1), PROJ: lora(PROJ, 1, 1.0, 2)})  # fmt: skip  # noqa: E501
    (tmp_path / "page.safetensors").write_bytes(b"<html>not a model</html>")
    files = sorted(tmp_path.iterdir())
    for path, how, order, said in (
        (checkpoint, Converting(naming="peft"), Output(), "of networks"),
        (network, Converting(prune=True), Output(), "of checkpoints"),
        (network, Converting(to="diffusers"), Output(), "made of a checkpoint"),
        (tmp_path / "page.safetensors", Converting(), Output(), "web page"),
        (tmp_path / "gone.safetensors", Converting(), Output(), "no such file"),
        (tmp_path, Converting(), Output(), "model_index"),
        (network, Converting(), Output(str(network)), "is an input"),
        (network, Converting(), Output(str(checkpoint)), "exists"),
    ):
        with pytest.raises(CrucibleError, match=said):
            convert(path, how, order)
    assert sorted(tmp_path.iterdir()) == files
