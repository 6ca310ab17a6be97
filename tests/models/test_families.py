"""Structures read from key shapes, and what is said of files that are something else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from extensions_lib.errors import FileProblem
from extensions_lib.models import (
    SD15,
    SD21,
    SDXL_BASE,
    SDXL_REFINER,
    Family,
    Structure,
    TextShape,
    UNetShape,
    VAEShape,
    checkpoint_shapes,
    structure_of,
)
from tests.tiny import TINY

DEMO = Structure(
    Family.SD1,
    UNetShape(
        in_channels=4,
        model_channels=64,
        channel_mult=(1, 2, 2, 1),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(0, 1, 1, 0),
        middle_depth=1,
        context_dim=64,
        heads=4,
        head_dim=None,
        linear_projection=False,
        adm_in_channels=None,
    ),
    (TextShape(width=64, layers=2, mlp=256, heads=4, kind="clip"),),
    VAEShape(channels=64, channel_mult=(1, 1, 1, 1), num_res_blocks=0),
)


@pytest.mark.parametrize("structure", [SD15, SD21, SDXL_BASE, SDXL_REFINER, *TINY.values()])
def test_shapes_give_the_structure_back(structure: Structure) -> None:
    assert structure_of(checkpoint_shapes(structure)) == structure


def test_small_model_with_its_head_counts_given() -> None:
    assert structure_of(checkpoint_shapes(DEMO), heads=4, text_heads=[4]) == DEMO


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 9},
        {"num_res_blocks": (1, 2, 3, 2)},
        {"transformer_depth": (1, 0, 2, 1)},
        {"middle_depth": 3},
        {"channel_mult": (1, 3)} | {"num_res_blocks": (2, 1), "transformer_depth": (1, 1)},
    ],
)
def test_other_unets(changes: dict[str, object]) -> None:
    structure = dataclasses.replace(SD15, unet=dataclasses.replace(SD15.unet, **changes))
    assert structure_of(checkpoint_shapes(structure)) == structure


def test_without_vae() -> None:
    structure = dataclasses.replace(SD15, vae=None)
    assert structure_of(checkpoint_shapes(structure)) == structure


def test_openclip_h_with_23_layers_runs_them_all() -> None:
    text = dataclasses.replace(SD21.texts[0], layers=23, unused_layers=0)
    structure = dataclasses.replace(SD21, texts=(text,))
    assert structure_of(checkpoint_shapes(structure)) == structure


def test_heads_of_each_level() -> None:
    assert SD15.unet.level_heads == (8, 8, 8, 8)
    assert SD21.unet.level_heads == (5, 10, 20, 20)
    assert SDXL_BASE.unet.level_heads == (5, 10, 20)
    assert SDXL_BASE.unet.attention == (False, True, True)


def test_components() -> None:
    assert SD15.text_components == ("te1",)
    assert SDXL_BASE.text_components == ("te1", "te2")
    assert SDXL_REFINER.text_components == ("te2",)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([], "no tensors"),
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"], "LoRA"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"], "LoRA"),
        (["transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight"], "LoRA"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "VAE alone"),
        (["first_stage_model.decoder.conv_in.weight"], "VAE alone"),
        (["down_blocks.0.resnets.0.time_emb_proj.weight"], "diffusers layout"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Diffusion 3"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["input_blocks.0.0.weight", "time_embed.0.weight"], "UNet alone"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text encoder alone"),
        (["emb_params"], "textual inversion"),
        (["some.layer", "other.layer"], "other.layer, some.layer"),
    ],
)
def test_strangers_are_called_by_name(keys: list[str], says: str) -> None:
    with pytest.raises(FileProblem, match=says) as caught:
        structure_of(dict.fromkeys(keys, (4, 4)), label="x.safetensors")
    assert str(caught.value).startswith("x.safetensors: is not a Stable Diffusion checkpoint")


def damaged(structure: Structure, **changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes = checkpoint_shapes(structure)
    for key, shape in changes.items():
        if shape is None:
            del shapes[key]
        else:
            shapes[key] = shape
    return shapes


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("structure", "changes", "says"),
    [
        (SD15, {f"{UNET}out.2.weight": None}, "incomplete.*out.2.weight"),
        (SD15, {f"{UNET}input_blocks.0.0.weight": (320, 4)}, "4 dimensions"),
        (SD15, {f"{UNET}label_emb.0.0.weight": (1280, 1024)}, "has a label embedding"),
        (SDXL_BASE, {f"{UNET}label_emb.0.0.weight": None}, "lacks a label embedding"),
        (SD15, {f"{UNET}input_blocks.0.0.weight": (0, 4, 3, 3)}, "dimensions above 0"),
        (SD15, {f"{UNET}input_blocks.0.0.weight": (33, 4, 3, 3)}, "297 channels"),
        (SD15, {f"{UNET}input_blocks.2.1.transformer_blocks.1.x": (1,)}, "not built as"),
        (SD15, {f"{UNET}input_blocks.99999999999.0.x": (1,)}, "no tensors input_blocks.12"),
    ],
)
def test_damaged_and_odd_checkpoints(
    structure: Structure, changes: dict[str, tuple[int, ...] | None], says: str
) -> None:
    with pytest.raises(FileProblem, match=says):
        structure_of(damaged(structure, **changes))


def test_no_text_encoder() -> None:
    shapes = {k: s for k, s in checkpoint_shapes(SD15).items() if "cond_stage" not in k}
    with pytest.raises(FileProblem, match="no text encoder"):
        structure_of(shapes)


def test_heads_that_do_not_divide_the_channels() -> None:
    with pytest.raises(FileProblem, match="cannot be split among 7 heads"):
        structure_of(checkpoint_shapes(SD15), heads=7)
    with pytest.raises(FileProblem, match="text encoder cannot be split among 7 heads"):
        structure_of(checkpoint_shapes(SD15), text_heads=[7])


def test_importing_the_room_needs_no_torch() -> None:
    code = "import sys, extensions_lib.models; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
