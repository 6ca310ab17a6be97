"""Networks converted: other names of layers, the other axis of a DoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from extensions_lib.adapters import DoRA, LoRA, Norm, adapter_from, merged
from extensions_lib.errors import CrucibleError
from extensions_lib.files.networks import read_network, write_network
from extensions_lib.models import SDXL_BASE
from extensions_lib.models.names import canonical_layers
from extensions_lib.toolbox.convert import Converting, convert
from extensions_lib.toolbox.work import Output
from tests.tiny import TINY, tiny_checkpoint, tiny_tensors
from tests.toolbox.networks import (
    CONV,
    NORM,
    SHAPES,
    TEXT,
    Q,
    exact,
    loha,
    lora,
    metadata_of,
    noise,
    relative,
    same,
    written,
)


def small_network(path: Path, structure: Any) -> Path:
    """A LoRA on a few layers of each component, and ranks and alphas that differ."""
    layers = canonical_layers(structure)
    chosen = [
        name
        for name, info in layers.items()
        if info.kind in ("linear", "conv")
        and not name.startswith("vae.")
        and any(
            mark in name
            for mark in (
                "attn2.to_k",
                "resnets.0.conv1",
                "layers.0.mlp.fc1",
                "proj_in",
                "layers.1.self_attn.q_proj",
            )
        )
    ]
    adapters = {}
    for place, name in enumerate(chosen):
        adapter = LoRA.fresh(layers[name].shape, 2 + place % 3, 1.0 + place % 2)
        adapters[name] = LoRA(noise(place, *adapter.up.shape), adapter.down, alpha=adapter.alpha)
    write_network(path, adapters, {"ss_output_name": "mine"})
    return path


@pytest.mark.parametrize("naming", ["kohya_diffusers", "peft", "comfyui"])
@pytest.mark.parametrize("family", ["SD1", "SDXL"])
def test_names_go_round(tmp_path: Path, naming: str, family: str) -> None:
    from extensions_lib.models import SD15

    structure = SD15 if family == "SD1" else SDXL_BASE
    path = small_network(tmp_path / "n.safetensors", structure)
    there = convert(path, Converting(naming=naming)).path
    back = convert(there, Converting(naming="kohya")).path
    assert same(load_file(back), load_file(path))
    assert metadata_of(back)["ss_output_name"] == "mine"
    assert metadata_of(back)["sshs_model_hash"] == metadata_of(path)["sshs_model_hash"]
    found = set(load_file(there))
    marks = {
        "kohya_diffusers": "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
        "peft": "unet.mid_block.attentions.0.proj_in.lora_B.weight",
        "comfyui": "diffusion_model.middle_block.1.proj_in.lora_up.weight",
    }
    assert marks[naming] in found
    if naming == "comfyui":
        second = "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.alpha"
        assert (second in found) == (family == "SDXL")


@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_loads_a_lora_in_its_names(tmp_path: Path, dora: bool) -> None:
    """Loaded and fused by diffusers and PEFT it changes every weight as it does here."""
    diffusers, _ = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    checkpoint = tiny_checkpoint(tmp_path / "m.safetensors")
    how = Converting(to="diffusers")
    folder = convert(checkpoint, how, Output(precision="fp32")).path
    path = small_network(tmp_path / "n.safetensors", TINY["SD1"])
    network = read_network(path, structure=TINY["SD1"])
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    modules = {"unet": pipe.unet, "te1": pipe.text_encoder}

    def weight(layer: str) -> torch.Tensor:
        component, _, inside = layer.partition(".")
        module = modules[component].get_submodule(inside)
        found = getattr(module, "base_layer", module).weight
        assert isinstance(found, torch.Tensor)
        return found.detach().clone()

    before = {layer: weight(layer) for layer in network.adapters}
    adapters = network.adapters
    if dora:
        adapters = {
            layer: DoRA(adapter, DoRA.fresh(adapter, before[layer]).magnitude * 1.2)
            for layer, adapter in adapters.items()
        }
        write_network(path, adapters)
    named = convert(path, Converting(naming="peft")).path
    assert read_network(named).ranks == network.ranks
    pipe.load_lora_weights(tmp_path, weight_name=named.name)
    pipe.fuse_lora()
    for layer, adapter in adapters.items():
        goal = merged(before[layer], [(adapter, 1.0)])
        torch.testing.assert_close(weight(layer), goal, atol=1e-5, rtol=1e-4)


def test_every_part_of_other_kinds_has_a_name_in_comfyui(tmp_path: Path) -> None:
    given = {Q: loha(Q, 2, 1), NORM: Norm(noise(1, 320)), TEXT: lora(TEXT, 2, None, 3)}
    path = written(tmp_path / "n.safetensors", given)
    there = convert(path, Converting(naming="comfyui")).path
    back = convert(there, Converting(naming="kohya")).path
    assert same(load_file(back), load_file(path))
    with pytest.raises(CrucibleError, match="resize"):
        convert(path, Converting(naming="peft"))


def test_embeddings_in_a_network_stay(tmp_path: Path) -> None:
    path = written(tmp_path / "n.safetensors", {Q: lora(Q, 2, 1.0, 1)})
    save_file(load_file(path) | {"bundle_emb.word.emb_params": noise(1, 2, 768)}, path)
    there = convert(path, Converting(naming="peft")).path
    assert list(read_network(there).embeddings) == ["word"]


# --- DoRA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["in", "out"])
def test_the_axis_of_a_dora(tmp_path: Path, axis: str) -> None:
    """What it says it keeps is what it keeps; most of it where lengths change evenly."""
    checkpoint = tiny_checkpoint(tmp_path / "m.safetensors")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    weight = tiny_tensors()[key].half().float()
    inner = LoRA(noise(1, 64, 4), noise(2, 4, 64) * 0.01, alpha=4.0)
    given = DoRA.fresh(inner, weight, on_input=axis == "out")
    given = DoRA(inner, given.magnitude * 1.3)
    path = written(tmp_path / "n.safetensors", {layer: given})
    how = Converting(dora_axis=axis, base=str(checkpoint))
    done = convert(path, how)
    found = read_network(done.path).adapters[layer]
    assert isinstance(found, DoRA)
    assert found.magnitude.shape == ((1, 64) if axis == "in" else (64, 1))
    goal, made = merged(weight, [(given, 1.0)]), merged(weight, [(found, 1.0)])
    kept = 1 - float((made - goal).square().sum() / (goal - weight).square().sum())
    assert done.layers[0].kept == pytest.approx(kept, abs=1e-4)
    assert kept > 0.9
    along = (0,) if axis == "in" else (1,)
    torch.testing.assert_close(made.norm(dim=along), goal.norm(dim=along))
    with pytest.raises(CrucibleError, match="--base"):
        convert(path, Converting(dora_axis=axis), Output(str(tmp_path / "x")))
    again = convert(done.path, Converting(dora_axis=axis, base=str(checkpoint)))
    assert not again.layers  # it lies along that axis


def test_a_change_of_names_changes_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path / "n.safetensors", {CONV: lora(CONV, 3, 2.0, 1)})
    there = read_network(convert(path, Converting(naming="comfyui")).path)
    assert relative(exact(there.adapters[CONV], SHAPES[CONV]), exact(lora(CONV, 3, 2.0, 1), SHAPES[CONV])) == 0  # fmt: skip  # noqa: E501
    assert adapter_from(there.adapters[CONV].tensors()).rank == 3
