"""Layer names, against full-size models built by diffusers and transformers without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from extensions_lib.models import (
    SD15,
    SD21,
    SDXL_BASE,
    SDXL_REFINER,
    Family,
    Structure,
    canonical_layers,
    checkpoint_shapes,
    component_of,
    flat,
    flat_ldm,
    kohya_names,
    places,
)
from tests.tiny import TINY

FULL = {"SD1": SD15, "SD2": SD21, "SDXL": SDXL_BASE, "refiner": SDXL_REFINER}

# The configs that are published with the models.
_SD = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
}
_TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "use_linear_projection": True,
}
UNETS: dict[str, dict[str, Any]] = {
    "SD1": {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SD2": {
        **_SD,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "SDXL": {
        **_TEXT_TIME,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "projection_class_embeddings_input_dim": 2816,
    },
    "refiner": {
        **_TEXT_TIME,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "block_out_channels": (384, 768, 1536, 1536),
        "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280,
        "attention_head_dim": [6, 12, 24, 24],
        "projection_class_embeddings_input_dim": 2560,
    },
}
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
_CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
TEXTS: dict[str, dict[str, tuple[type[nn.Module], dict[str, int]]]] = {
    "SD1": {"te1": (CLIPTextModel, _CLIP_L)},
    "SD2": {"te1": (CLIPTextModel, _CLIP_H)},
    "SDXL": {"te1": (CLIPTextModel, _CLIP_L), "te2": (CLIPTextModelWithProjection, _CLIP_G)},
    "refiner": {"te2": (CLIPTextModelWithProjection, _CLIP_G)},
}
LEAVES = {
    nn.Linear: "linear",
    nn.Conv2d: "conv",
    nn.GroupNorm: "norm",
    nn.LayerNorm: "norm",
    nn.Embedding: "embedding",
}


def build(name: str) -> dict[str, nn.Module]:
    with torch.device("meta"):
        levels = (128, 256, 512, 512)
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(**UNETS[name]),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=levels,
                layers_per_block=2,
            ),
        }
        for component, (model, config) in TEXTS[name].items():
            parts[component] = model(CLIPTextConfig(**config))  # type: ignore[call-arg]
    return parts


@pytest.fixture(scope="module", params=list(FULL))
def full(request: pytest.FixtureRequest) -> tuple[str, Structure, dict[str, nn.Module]]:
    return request.param, FULL[request.param], build(request.param)


Full = tuple[str, Structure, dict[str, nn.Module]]


def test_every_layer_has_one_name_and_its_shape(full: Full) -> None:
    _, structure, parts = full
    found = {
        f"{component}.{path}": (LEAVES[type(module)], tuple(module.weight.shape))
        for component, part in parts.items()
        for path, module in part.named_modules()
        if type(module) in LEAVES
    }
    named = {name: (info.kind, info.shape) for name, info in canonical_layers(structure).items()}
    assert named == found


def test_the_layers_hold_every_parameter(full: Full) -> None:
    _, structure, parts = full
    expected = {
        f"{component}.{key}" for component, part in parts.items() for key in part.state_dict()
    }
    named = set()
    for name, info in canonical_layers(structure).items():
        named.add(f"{name}.weight")
        if info.bias:
            named.add(f"{name}.bias")
    assert named == expected


def test_diffusers_places_lead_to_the_layers(full: Full) -> None:
    _, structure, parts = full
    layers = canonical_layers(structure)
    for canonical, place in places(structure, "diffusers").items():
        module = parts[component_of(canonical)].get_submodule(place.within)
        assert tuple(module.weight.shape) == layers[canonical].shape == place.shape
        assert place.rows is None and place.parameter == "weight"


def test_ldm_places_agree_with_the_converters_of_diffusers(full: Full) -> None:
    """Each tensor under our ldm key must come out of diffusers' conversion at our name for it."""
    name, structure, parts = full
    tensors = {
        key: torch.empty(shape, device="meta")
        for key, shape in checkpoint_shapes(structure).items()
    }
    key_of = {id(tensor): key for key, tensor in tensors.items()}
    ldm = places(structure, "ldm")
    for component, part in parts.items():
        converted = convert(component, part, tensors, structure)
        wanted = {key: tuple(value.shape) for key, value in part.state_dict().items()}
        if name == "SD2" and component == "te1":  # diffusers leaves out the layer never run
            wanted = {key: shape for key, shape in wanted.items() if ".layers.23." not in key}
        assert {key: tuple(value.shape) for key, value in converted.items()} == wanted
        for key, tensor in converted.items():
            layer, _, kind = key.rpartition(".")
            place = ldm[f"{component}.{layer}"]
            reshaped = id(tensor) not in key_of
            assert reshaped == (
                place.rows is not None
                or place.transposed
                or (kind == "weight" and place.shape[2:] == (1, 1) and tensor.ndim == 2)
            )
            if not reshaped:
                assert key_of[id(tensor)] == (place.bias_key if kind == "bias" else place.key)


def convert(
    component: str, part: nn.Module, tensors: dict[str, torch.Tensor], structure: Structure
) -> dict[str, torch.Tensor]:
    if component == "unet":
        return converters.convert_ldm_unet_checkpoint(dict(tensors), part.config)
    if component == "vae":
        return converters.convert_ldm_vae_checkpoint(dict(tensors), part.config)
    index = structure.text_components.index(component)
    if structure.texts[index].kind == "clip":
        return converters.convert_ldm_clip_checkpoint(dict(tensors))
    prefix = {
        "te1": "cond_stage_model.model.",
        "te2": f"conditioner.embedders.{index}.model.",
    }[component]
    return converters.convert_open_clip_checkpoint(part, dict(tensors), prefix=prefix)


@pytest.mark.parametrize(
    ("name", "unet", "text", "vae"),
    [("SD1", 686, 196, 248), ("SD2", 686, 292, 248), ("SDXL", 1680, 196 + 389, 248)],
)
def test_key_counts_of_the_published_files(name: str, unet: int, text: int, vae: int) -> None:
    keys = checkpoint_shapes(FULL[name])
    assert sum(key.startswith("model.diffusion_model.") for key in keys) == unet
    assert sum(key.startswith("first_stage_model.") for key in keys) == vae
    assert sum(key.startswith(("cond_stage_model.", "conditioner.")) for key in keys) == text


def test_known_keys() -> None:
    sd1, sd2, xl = (checkpoint_shapes(FULL[name]) for name in ("SD1", "SD2", "SDXL"))
    unet = "model.diffusion_model."
    assert sd1[f"{unet}input_blocks.1.1.proj_in.weight"] == (320, 320, 1, 1)
    assert sd1[f"{unet}output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert sd1[f"{unet}output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert sd1["first_stage_model.decoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert sd1["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    fused = "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight"
    assert sd2[fused] == (3072, 1024)
    assert sd2[f"{unet}input_blocks.1.1.proj_in.weight"] == (320, 320)
    assert "cond_stage_model.model.text_projection" not in sd2
    assert xl[f"{unet}label_emb.0.0.weight"] == (1280, 2816)
    assert xl[f"{unet}output_blocks.0.1.transformer_blocks.9.attn2.to_k.weight"] == (1280, 2048)
    assert xl["conditioner.embedders.1.model.text_projection"] == (1280, 1280)
    assert xl["conditioner.embedders.1.model.positional_embedding"] == (77, 1280)


def test_fused_attention_is_split_into_thirds() -> None:
    found = places(SDXL_BASE, "ldm")
    layer = "te2.text_model.encoder.layers.3.self_attn"
    parts = [found[f"{layer}.{part}_proj"] for part in "qkv"]
    assert {part.path for part in parts} == {
        "conditioner.embedders.1.model.transformer.resblocks.3.attn"
    }
    assert [part.rows for part in parts] == [
        slice(0, 1280),
        slice(1280, 2560),
        slice(2560, 3840),
    ]
    assert parts[0].key.endswith("attn.in_proj_weight")
    assert parts[0].bias_key.endswith("attn.in_proj_bias")
    assert found[f"{layer}.out_proj"].rows is None


@pytest.mark.parametrize("tree", ["diffusers", "ldm", "forge"])
@pytest.mark.parametrize("structure", [*FULL.values(), *TINY.values()])
def test_places_are_one_to_one(structure: Structure, tree: Any) -> None:
    found = places(structure, tree)
    spots = {(place.key, place.rows and place.rows.start) for place in found.values()}
    assert len(spots) == len(found)
    if tree != "forge":
        assert list(found) == list(canonical_layers(structure))


def test_forge_names() -> None:
    xl, sd2 = places(SDXL_BASE, "forge"), places(SD21, "forge")
    assert xl["unet.conv_in"].path == "input_blocks.0.0"
    assert xl["vae.decoder.up_blocks.0.resnets.0.conv1"].path == "decoder.up.3.block.0.conv1"
    query = "text_model.encoder.layers.0.self_attn.q_proj"
    assert xl[f"te1.{query}"].path == f"clip_l.transformer.{query}"
    assert xl[f"te2.{query}"].path == f"clip_g.transformer.{query}"
    assert xl[f"te2.{query}"].within == query
    assert xl["te2.text_projection"].path == "clip_g.transformer.text_projection"
    assert sd2[f"te1.{query}"].path == f"clip_h.transformer.{query}"
    # Forge builds SD2's encoder with 23 of the 24 layers.
    left_out = set(canonical_layers(SD21)) - set(sd2)
    assert left_out and all(".layers.23." in name for name in left_out)


def test_flat_names() -> None:
    layer = "text_model.encoder.layers.0.mlp.fc1"
    assert flat(f"te1.{layer}") == "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert flat(f"te1.{layer}", Family.SDXL).startswith("lora_te1_text_model_")
    assert flat(f"te2.{layer}", Family.SDXL).startswith("lora_te2_text_model_")
    query = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert flat(query) == ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q")
    assert flat_ldm(query, SDXL_BASE) == (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    )
    with pytest.raises(KeyError):
        flat_ldm(f"te1.{layer}", SDXL_BASE)


@pytest.mark.parametrize("structure", [*FULL.values(), *TINY.values()])
def test_kohya_names_hold_both_unet_namings_without_clash(structure: Structure) -> None:
    table, layers = kohya_names(structure), canonical_layers(structure)
    unet = [name for name in layers if name.startswith("unet.")]
    for canonical in layers:
        assert table[flat(canonical, structure.family)] == canonical
    for canonical in unet:
        assert table[flat_ldm(canonical, structure)] == canonical
    extra = len(unet)
    if structure.family is not Family.SDXL:
        extra += sum(name.startswith("te1.") for name in layers)
    assert len(table) == len(layers) + extra
