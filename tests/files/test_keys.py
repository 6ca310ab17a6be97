"""Every spelling of every layer leads to the one canonical layer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from extensions_lib.files.keys import KNOWN, flat_names, group, part_of
from extensions_lib.files.networks import flat_name
from extensions_lib.models.families import SD15, SD21, SDXL_BASE, Family, Structure
from extensions_lib.models.names import canonical_layers, component_of, kohya_names

TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
TE = "te1.text_model.encoder.layers.3.self_attn.q_proj"
TE2 = "te2.text_model.encoder.layers.30.mlp.fc1"
Q_FLAT = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
Q_DOTS = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TE_DOTS = "text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "layer", "part"),
    [
        (f"{Q_FLAT}.lora_up.weight", TO_Q, "lora_up.weight"),
        (f"{Q_FLAT}.alpha", TO_Q, "alpha"),
        (f"{Q_FLAT}.hada_w1_a", TO_Q, "hada_w1_a"),
        (f"{Q_FLAT}.something.new", TO_Q, "something.new"),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_mid.weight",
            TO_Q,
            "lora_mid.weight",
        ),
        ("lora_unet_out_2.lora_down.weight", "unet.conv_out", "lora_down.weight"),
        ("lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha", TE, "alpha"),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj.alpha", TE, "alpha"),
        ("lora_te2_text_model_encoder_layers_30_mlp_fc1.alpha", TE2, "alpha"),
        (f"lora_unet_{Q_DOTS}.lora_down.weight", TO_Q, "lora_down.weight"),
        (f"unet.{Q_DOTS}.lora_A.weight", TO_Q, "lora_down.weight"),
        (f"unet.{Q_DOTS}.lora_B.default.weight", TO_Q, "lora_up.weight"),
        (f"unet.{Q_DOTS}.lora.down.weight", TO_Q, "lora_down.weight"),
        (f"unet.{Q_DOTS}.lora_magnitude_vector", TO_Q, "lora_magnitude_vector"),
        (f"base_model.model.{Q_DOTS}.lora_A.weight", TO_Q, "lora_down.weight"),
        (f"base_model.model.unet.{Q_DOTS}.lora_A.weight", TO_Q, "lora_down.weight"),
        (f"lycoris_{Q_FLAT[10:]}.lokr_w1", TO_Q, "lokr_w1"),
        (f"oft_unet_{Q_FLAT[10:]}.oft_blocks", TO_Q, "oft_blocks"),
        (
            "oft_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.oft_blocks",
            TO_Q,
            "oft_blocks",
        ),
        (
            "lora_te_wrapped_model_transformer_resblocks_3_attn_q_proj.lora_up.weight",
            TE,
            "lora_up.weight",
        ),
        ("lora_te_wrapped_transformer_" + TE_DOTS.replace(".", "_") + ".alpha", TE, "alpha"),
        (
            "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
            TO_Q,
            "lora_up.weight",
        ),
        (
            f"unet.{Q_DOTS.replace('to_q', 'processor.to_q_lora')}.up.weight",
            TO_Q,
            "lora_up.weight",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
            OUT,
            "lora_up.weight",
        ),
        (f"text_encoder.{TE_DOTS}.lora_linear_layer.up.weight", TE, "lora_up.weight"),
        (
            f"text_encoder.{TE_DOTS.replace('q_proj', 'to_q_lora')}.down.weight",
            TE,
            "lora_down.weight",
        ),
        (f"text_encoders.clip_l.transformer.{TE_DOTS}.lora_up.weight", TE, "lora_up.weight"),
        (
            "text_encoder_2.text_model.encoder.layers.30.mlp.fc1.lora_A.weight",
            TE2,
            "lora_down.weight",
        ),
    ],
)
def test_spellings(key: str, layer: str, part: str) -> None:
    assert part_of(key) == (layer, part)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
        "lora_te3_encoder_block_0.alpha",
        "transformer.blocks.0.lora_A.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "emb_params",
        "",
        ".",
        "lora_unet_.",
    ],
)
def test_strangers_are_listed(key: str) -> None:
    assert part_of(key)[0] is None
    grouped = group({key: 1})
    assert not grouped.layers
    assert len(grouped.unmatched) == 1


@pytest.mark.parametrize("structure", KNOWN, ids=["SD1", "SD2", "SDXL", "refiner"])
def test_no_family_s_names_contradict_the_union(structure: Structure) -> None:
    union = flat_names()
    own = kohya_names(structure)
    assert {name: union[name] for name in own} == own


@pytest.mark.parametrize("structure", [SD15, SD21, SDXL_BASE], ids=["SD1", "SD2", "SDXL"])
def test_every_layer_comes_back_from_every_spelling(structure: Structure) -> None:
    trees = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
    for layer in canonical_layers(structure):
        component, _, path = layer.partition(".")
        assert part_of(f"{flat_name(layer, structure.family)}.alpha") == (layer, "alpha")
        if component in trees:
            dotted = f"{trees[component]}.{path}.lora_A.weight"
            assert part_of(dotted) == (layer, "lora_down.weight")


def test_sdxl_is_written_after_ldm_and_sd1_after_diffusers() -> None:
    assert flat_name(TO_Q, Family.SD1) == Q_FLAT
    assert flat_name(TO_Q, Family.SDXL).startswith("lora_unet_input_blocks_4_1_")
    assert flat_name(TE, Family.SD2).startswith("lora_te_")
    assert flat_name(TE, Family.SDXL).startswith("lora_te1_")
    assert flat_name(TE2, None).startswith("lora_te2_")
    written = {flat_name(layer, Family.SDXL) for layer in canonical_layers(SDXL_BASE)}
    assert len(written) == len(canonical_layers(SDXL_BASE))


def test_the_holes_of_others_are_filled() -> None:
    for name, layer in (
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_add_embedding_linear_1", "unet.add_embedding.linear_1"),
        ("lora_unet_conv_norm_out", "unet.conv_norm_out"),
        ("lora_te_text_model_final_layer_norm", "te1.text_model.final_layer_norm"),
        ("lora_te2_text_projection", "te2.text_projection"),
    ):
        assert part_of(f"{name}.diff") == (layer, "diff")
        assert component_of(layer) in ("unet", "te1", "te2")


def test_a_loaded_model_s_own_names_are_added() -> None:
    import dataclasses

    unet = dataclasses.replace(
        SD15.unet, channel_mult=(1, 2), num_res_blocks=(5, 5), transformer_depth=(1, 1)
    )
    small = dataclasses.replace(SD15, unet=unet)
    key = "lora_unet_down_blocks_0_attentions_4_proj_in.alpha"
    assert part_of(key)[0] is None
    assert part_of(key, small)[0] == "unet.down_blocks.0.attentions.4.proj_in"


def test_a_layer_named_twice_is_said_and_the_first_has_it() -> None:
    ldm = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    grouped = group({f"{Q_FLAT}.alpha": 1, f"{ldm}.alpha": 2, f"{ldm}.lora_up.weight": 3})
    assert grouped.layers == {TO_Q: {"alpha": 1}}
    assert len(grouped.problems) == 1
    assert TO_Q in grouped.problems[0]
    assert ldm in grouped.problems[0]


def test_halves_of_a_layer_under_two_names_are_one_layer() -> None:
    grouped = group({f"unet.{Q_DOTS}.lora.up.weight": 1, f"{Q_FLAT}.alpha": 2})
    assert grouped.layers == {TO_Q: {"lora_up.weight": 1, "alpha": 2}}
    assert not grouped.problems


def test_the_same_part_under_two_endings_is_said() -> None:
    grouped = group({f"unet.{Q_DOTS}.lora.up.weight": 1, f"unet.{Q_DOTS}.lora_B.weight": 2})
    assert grouped.layers == {TO_Q: {"lora_up.weight": 1}}
    assert len(grouped.problems) == 1


def test_no_torch_is_needed() -> None:
    code = (
        "import sys; import extensions_lib.files.recognise, extensions_lib.library;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
