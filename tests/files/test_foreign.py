"""What comes along with a network, and what does not load and is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FileProblem
from extensions_lib.files.foreign import foreign_family
from extensions_lib.files.networks import read_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header, write_safetensors
from extensions_lib.models.families import SD15, SDXL_BASE
from extensions_lib.models.names import flat
from tests.files.spelled import (
    KOHYA_ENDS,
    PEFT_ENDS,
    check,
    pairs,
    wrote,
)


def test_bundled_embeddings(tmp_path: Path) -> None:
    given = pairs(SD15, "attn2")
    path = wrote(tmp_path / "n.safetensors", given, flat, KOHYA_ENDS)
    from extensions_lib.files.safe import read_tensors

    tensors = dict(read_tensors(path))
    tensors["bundle_emb.my.word.string_to_param.*"] = torch.randn(2, 768)
    tensors["bundle_emb.other.clip_l"] = torch.randn(1, 768)
    tensors["bundle_emb.other.clip_g"] = torch.randn(1, 1280)
    write_safetensors(tmp_path / "m.safetensors", tensors)
    network = check(tmp_path / "m.safetensors", given)
    assert {name: sorted(parts) for name, parts in network.embeddings.items()} == {
        "my.word": ["string_to_param.*"],
        "other": ["clip_g", "clip_l"],
    }
    only = {key: t for key, t in tensors.items() if key.startswith("bundle")}
    write_safetensors(tmp_path / "e.safetensors", only)
    assert not read_network(tmp_path / "e.safetensors").adapters


@pytest.mark.parametrize(
    ("layer", "family"),
    [
        ("lora_unet_double_blocks_3_img_attn_qkv", "Flux"),
        ("transformer.single_transformer_blocks.3.attn.to_q", "Flux"),
        ("diffusion_model.double_blocks.0.img_mlp.fc1", "HunyuanVideo"),
        ("lora_unet_joint_blocks_3_x_block_attn_qkv", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.3.attn.add_q_proj", "Stable Diffusion 3"),
        ("transformer.transformer_blocks.3.img_mlp.net.2", "Qwen-Image"),
        ("diffusion_model.blocks.3.self_attn.q", "Wan"),
        ("lora_unet_blocks_3_cross_attn_k_img", "Wan"),
        ("transformer.transformer_blocks.3.attn1.to_q", "a transformer model"),
        ("base_model.model.model.layers.3.self_attn.q_proj", "a language model"),
        ("lllite_unet_input_blocks_4_1_attn1_to_q", "ControlNet-LLLite"),
    ],
)
def test_other_families_are_named(tmp_path: Path, layer: str, family: str) -> None:
    path = tmp_path / "n.safetensors"
    clip = pairs(SD15, r"^te1.*mlp")  # its CLIP is SD1's, which must not make it a network for SD1
    tensors = {f"lora_te1_{n[4:].replace('.', '_')}.lora_up.weight": up for n, (up, _) in clip.items()}  # fmt: skip  # noqa: E501
    for part in PEFT_ENDS:
        tensors[f"{layer}.{part}"] = torch.ones(2, 2)
    write_safetensors(path, tensors)
    facts = facts_of(read_any_header(path).shapes)
    assert facts.foreign is not None
    assert facts.foreign.startswith(family)
    assert facts.layers == 0
    with pytest.raises(FileProblem, match=f"made for {family}"):
        read_network(path)


def test_a_preset_s_own_layers_are_counted_and_not_taken_for_a_family(tmp_path: Path) -> None:
    given = pairs(SDXL_BASE, "attn2")
    path = wrote(tmp_path / "n.safetensors", given, flat, KOHYA_ENDS)
    from extensions_lib.files.safe import read_tensors

    tensors = dict(read_tensors(path))
    for i in range(40):
        tensors[f"lycoris_my_blocks_{i}_mixer.lora_up.weight"] = torch.ones(2, 2)
    write_safetensors(tmp_path / "m.safetensors", tensors)
    network = read_network(tmp_path / "m.safetensors")
    assert len(network.adapters) == len(given)
    assert len(network.unmatched) == 40
    assert foreign_family(["lora_unet_up_blocks_3_transformer_blocks_1_attn"]) is None


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"oft_r": (4, 80, 80)}, "PEFT's OFT of before 0.16"),
        ({"ln_tuning_layers.weight": (320,)}, "PEFT's LN tuning"),
        ({"vera_lambda_b": (320,), "vera_lambda_d": (4,)}, "VeRA"),
        ({"hra_u": (320, 4)}, "HRA"),
        ({"fourierft_spectrum": (9,)}, "FourierFT"),
        (
            {"q_layer.weight": (2, 320), "p_layer.weight": (320, 2), "lambda_layer": (1, 2)},
            "T-LoRA",
        ),
    ],
)
def test_algorithms_that_cannot_be_applied_are_named(
    tmp_path: Path, parts: dict[str, tuple[int, ...]], says: str
) -> None:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    path = tmp_path / "n.safetensors"
    write_safetensors(path, {f"{layer}.{part}": torch.ones(shape) for part, shape in parts.items()})
    with pytest.raises(FileProblem, match=says):
        read_network(path)
    assert any(says in problem for problem in facts_of(read_any_header(path).shapes).problems)


def test_an_algorithm_without_a_name_here(tmp_path: Path) -> None:
    """Its layers are known, its parts are not: that is what is said, and of which parts."""
    layer = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    parts = {f"{layer}.gralora_A": torch.ones(4, 80), f"{layer}.gralora_B": torch.ones(4, 80)}
    path = tmp_path / "n.safetensors"
    write_safetensors(path, parts)
    with pytest.raises(FileProblem, match=r"algorithm unknown here \(gralora_A, gralora_B\)$"):
        read_network(path)
    facts = facts_of(read_any_header(path).shapes)
    assert facts.unmatched == [f"{layer} (gralora_A, gralora_B)"]
    plain = {f"{layer}.lora_A.weight": torch.ones(2, 320), f"{layer}.lora_B.weight": torch.ones(320, 2)}  # fmt: skip  # noqa: E501
    other = {key.replace("to_q", "to_k"): part for key, part in parts.items()}
    write_safetensors(path, plain | other)
    network = read_network(path)
    assert len(network.adapters) == 1
    assert network.unmatched == [f"{layer.replace('to_q', 'to_k')} (gralora_A, gralora_B)"]


def test_whole_weights_beside_a_lora(tmp_path: Path) -> None:
    """PEFT's modules_to_save."""
    layer, path = "base_model.model.mid_block.resnets.0", tmp_path / "n.safetensors"
    tensors = {
        f"{layer}.conv1.lora_A.weight": torch.ones(2, 1280, 3, 3),
        f"{layer}.conv1.lora_B.weight": torch.ones(1280, 2, 1, 1),
        f"{layer}.conv2.weight": torch.ones(1280, 1280, 1, 1),
        f"{layer}.conv2.bias": torch.ones(1280),
    }
    write_safetensors(path, tensors)
    network = read_network(path)
    assert len(network.adapters) == 1
    said = f"{layer}.conv2 (bias, weight: in place of the model's own, which is not supported)"
    assert network.unmatched == facts_of(read_any_header(path).shapes).unmatched == [said]
    name = "lora_unet_mid_block_resnets_0_conv2"
    write_safetensors(path, {f"{name}.weight": tensors[f"{layer}.conv2.weight"]})
    with pytest.raises(FileProblem, match=f"first is {name} .weight: in place of the model's own"):
        read_network(path)


def test_a_network_of_layers_unknown_here_is_not_called_a_base_model(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    write_safetensors(path, {f"some.block.{end}": torch.ones(2, 2) for end in PEFT_ENDS})
    with pytest.raises(FileProblem, match=r"none of its 1 layers is known, such as 'some\.block'"):
        read_network(path)
