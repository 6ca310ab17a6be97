"""Loading through diffusers, against diffusers' own conversion of the same tensors."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from extensions_lib.errors import FileProblem
from extensions_lib.hosts.standalone.load import load_checkpoint, predicts_v
from extensions_lib.models import (
    Family,
    Structure,
    TextShape,
    UNetShape,
    VAEShape,
    canonical_layers,
)
from extensions_lib.models.loaded import LoadedModel
from tests.tiny import TINY, random_tensors, tiny_checkpoint, tiny_tensors

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
DEMO_YAML = """
model:
  params:
    parameterization: "v"
    unet_config: {params: {num_heads: 4}}
    cond_stage_config: {target: x.FrozenCLIPEmbedder, params: {version: clip}}
"""

# Written out by hand, as diffusers' own configs are, and independent of the loader's derivation.
UNETS: dict[str, dict[str, Any]] = {
    "SD1": {
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        "block_out_channels": (32, 64, 64, 64),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "layers_per_block": 2,
    },
    "SD2": {
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "block_out_channels": (32, 64, 64, 64),
        "cross_attention_dim": 32,
        "attention_head_dim": 1,
        "use_linear_projection": True,
        "layers_per_block": 2,
    },
    "SDXL": {
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        "block_out_channels": (32, 32, 64),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 80,
        "attention_head_dim": 1,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 48 + 6 * 256,
        "layers_per_block": 2,
    },
    "demo": {
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        "block_out_channels": (64, 128, 128, 64),
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
        "layers_per_block": 2,
    },
}


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def demo_checkpoint(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    tensors = random_tensors(DEMO)
    (folder / "clip").mkdir()
    (folder / "clip" / "config.json").write_text('{"num_attention_heads": 4}')
    (folder / "demo.yaml").write_text(DEMO_YAML)
    return write(folder / "demo.safetensors", tensors), tensors


@pytest.fixture(scope="module", params=["SD1", "SD2", "SDXL", "demo"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, LoadedModel, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("load")
    if request.param == "demo":
        path, tensors = demo_checkpoint(folder)
    else:
        tensors = tiny_tensors(request.param)
        path = write(folder / "x.safetensors", tensors)
    return request.param, load_checkpoint(path, device="cpu"), tensors


Case = tuple[str, LoadedModel, dict[str, Tensor]]


def test_unet_equals_the_converted_one(case: Case) -> None:
    torch.manual_seed(0)
    name, model, tensors = case
    reference = UNet2DConditionModel(**UNETS[name])
    state = converters.convert_ldm_unet_checkpoint(dict(tensors), reference.config)
    reference.load_state_dict(state, strict=True)
    same_tensors(model.unet, state)
    added: dict[str, Any] = {}
    if name == "SDXL":
        added = {"text_embeds": torch.randn(2, 48), "time_ids": torch.rand(2, 6) * 64}
    context = torch.randn(2, 77, model.structure.unet.context_dim)
    arguments = (torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), context)
    with torch.no_grad():
        expected = reference.eval()(*arguments, added_cond_kwargs=added).sample
        found = model.unet(*arguments, added_cond_kwargs=added).sample
    assert found.std() > 0.05
    # The weights are the same bits; linear layers and 1x1 convolutions sum in another order.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_vae_equals_the_converted_one(case: Case) -> None:
    name, model, tensors = case
    levels = (64,) * 4 if name == "demo" else (32,) * 4
    reference = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=levels,
        layers_per_block=0 if name == "demo" else 1,
    )
    state = converters.convert_ldm_vae_checkpoint(dict(tensors), reference.config)
    reference.load_state_dict(state, strict=True)
    same_tensors(model.vae, state)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = model.vae.encode(image).latent_dist.mean
        assert torch.equal(latents, reference.eval().encode(image).latent_dist.mean)
        assert torch.equal(model.vae.decode(latents).sample, reference.decode(latents).sample)
    assert model.vae.config.scaling_factor == model.vae_scale
    assert model.vae_scale == (0.13025 if name == "SDXL" else 0.18215)


def test_text_encoders_equal_the_converted_ones(case: Case) -> None:
    name, model, tensors = case
    tokens = torch.tensor([[49406, 320, 1125, 539, 49407] + [49407] * 72])
    for index, (shape, encoder) in enumerate(
        zip(model.structure.texts, model.text_encoders, strict=True)
    ):
        reference, state = reference_text(name, index, shape, tensors)
        if name == "SD2":  # the converter leaves out the layer that SD2 never runs
            found = {k: v for k, v in encoder.state_dict().items() if ".layers.2." not in k}
            assert found.keys() == state.keys()
        else:
            same_tensors(encoder, state)
        with torch.no_grad():
            expected = reference(tokens, output_hidden_states=True)
            found_states = encoder(tokens, output_hidden_states=True)
        # The state before the last layer, or all of SD2's two that run.
        ours = found_states.hidden_states[-2]
        theirs = expected.hidden_states[-1 if name == "SD2" else -2]
        torch.testing.assert_close(ours, theirs)
        if shape.projection is not None:
            torch.testing.assert_close(found_states.text_embeds, expected.text_embeds)
        elif name != "SD2":
            torch.testing.assert_close(found_states[0], expected[0])


def reference_text(
    name: str, index: int, shape: TextShape, tensors: dict[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor]]:
    config = CLIPTextConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers - (name == "SD2"),
        num_attention_heads=4 if name == "demo" else 1,
        hidden_act="quick_gelu" if shape.kind == "clip" else "gelu",
        projection_dim=shape.width,
    )
    if shape.kind == "clip":
        state = converters.convert_ldm_clip_checkpoint(dict(tensors))
        model: nn.Module = CLIPTextModel(config)
    elif name == "SD2":
        # Its list of keys to leave out is for 24 layers; these have 3.
        some = {k: v for k, v in tensors.items() if "resblocks.2." not in k}
        model = CLIPTextModel(config)
        state = converters.convert_open_clip_checkpoint(model, some)
    else:
        model = CLIPTextModelWithProjection(config)
        prefix = f"conditioner.embedders.{index}.model."
        state = converters.convert_open_clip_checkpoint(model, dict(tensors), prefix=prefix)
    model.load_state_dict(state, strict=True)
    return model.eval(), state


def same_tensors(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    for key, tensor in own.items():
        assert torch.equal(tensor, state[key]), key


def test_the_model_is_ready_and_owns_its_weights(case: Case) -> None:
    _, model, _ = case
    assert model.tree == "diffusers" and model.notes == ()
    assert model.device.type == "cpu" and model.dtype == torch.float32
    assert len(model.hash) == 64
    pointers = set()
    for part in (model.unet, model.vae, *model.text_encoders):
        assert not part.training
        assert not any(buffer.is_meta for buffer in part.buffers())
        for parameter in part.parameters():
            assert not parameter.requires_grad and parameter.dtype == torch.float32
            assert parameter.is_contiguous() and not parameter.is_meta
            assert parameter.untyped_storage().nbytes() == parameter.nbytes
            pointers.add(parameter.data_ptr())
    layers = canonical_layers(model.structure)
    for canonical, info in layers.items():
        module, name, rows = model.layer(canonical)
        weight = module._parameters[name]
        assert weight is not None and rows is None and tuple(weight.shape) == info.shape
    assert len(pointers) == sum(1 + info.bias for info in layers.values())


def test_demo_takes_heads_and_prediction_from_its_yaml(tmp_path: Path) -> None:
    model = load_checkpoint(demo_checkpoint(tmp_path)[0])
    assert model.structure == DEMO
    assert model.schedule.prediction == "v_prediction"
    assert model.name == "demo"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tiny_checkpoint(tmp_path / "x.safetensors", "SDXL")
    model = load_checkpoint(path, device="cpu", dtype=dtype)
    assert model.dtype == dtype
    for part in (model.unet, *model.text_encoders):
        assert {p.dtype for p in part.parameters()} == {dtype}
    # SDXL's VAE overflows in float16.
    vae = torch.float32 if dtype == torch.float16 else dtype
    assert {p.dtype for p in model.vae.parameters()} == {vae}
    path = tiny_checkpoint(tmp_path / "y.safetensors", "SD1")
    assert load_checkpoint(path, device="cpu", dtype=dtype).vae.dtype == dtype


@pytest.mark.parametrize("family", list(TINY))
def test_the_marker_key_means_v_prediction(tmp_path: Path, family: str) -> None:
    path = tiny_checkpoint(tmp_path / "x.safetensors", family, v_pred=True)
    assert load_checkpoint(path).schedule.prediction == "v_prediction"
    path = tiny_checkpoint(tmp_path / "x.safetensors", family)
    assert load_checkpoint(path).schedule.prediction == "epsilon"


@pytest.mark.parametrize(
    ("bias", "prediction"), [(0.5, "epsilon"), (-0.4, "epsilon"), (-1.0, "v_prediction")]
)
def test_sd2_without_a_word_is_tried(tmp_path: Path, bias: float, prediction: str) -> None:
    """A UNet that answers the input (noise) or something far below it (v), by its last bias."""
    tensors = tiny_tensors("SD2")
    tensors["model.diffusion_model.out.2.weight"].zero_()
    tensors["model.diffusion_model.out.2.bias"].fill_(bias)
    model = load_checkpoint(write(tmp_path / "x.safetensors", tensors))
    assert model.schedule.prediction == prediction
    assert predicts_v(model.unet, 32) == (prediction == "v_prediction")


def test_inpainting_has_nine_channels(tmp_path: Path) -> None:
    for family in ("SD1", "SD2"):
        base = TINY[family]
        structure = dataclasses.replace(base, unet=dataclasses.replace(base.unet, in_channels=9))
        model = load_checkpoint(write(tmp_path / "x.safetensors", random_tensors(structure)))
        with torch.no_grad():
            answer = model.unet(torch.randn(1, 9, 8, 8), 500, torch.randn(1, 77, 32)).sample
        assert answer.shape == (1, 4, 8, 8)
        assert model.schedule.prediction == "epsilon"


def test_other_plans(tmp_path: Path) -> None:
    """Uneven levels: other block counts, depths and attention at the last level."""
    unet = dataclasses.replace(
        TINY["SDXL"].unet,
        num_res_blocks=(1, 2, 3),
        transformer_depth=(3, 0, 2),
        middle_depth=2,
    )
    structure = dataclasses.replace(TINY["SDXL"], unet=unet)
    path = write(tmp_path / "x.safetensors", random_tensors(structure))
    assert load_checkpoint(path).structure == structure
    unet = dataclasses.replace(unet, middle_depth=1)
    structure = dataclasses.replace(structure, unet=unet)
    path = write(tmp_path / "y.safetensors", random_tensors(structure))
    with pytest.raises(FileProblem, match="middle of the UNet"):
        load_checkpoint(path)


def test_refiner_layout(tmp_path: Path) -> None:
    base = TINY["SDXL"]
    structure = dataclasses.replace(base, texts=base.texts[1:])
    model = load_checkpoint(write(tmp_path / "x.safetensors", random_tensors(structure)))
    assert model.structure.text_components == ("te2",)
    assert model.component("te2") is model.text_encoders[0]


def test_schedule_and_scale_from_the_yaml(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "x.safetensors")
    (tmp_path / "x.yaml").write_text(
        "model: {params: {linear_start: 0.001, linear_end: 0.01, timesteps: 500, "
        "scale_factor: 0.5}}"
    )
    model = load_checkpoint(path)
    assert model.schedule.steps == 500 and model.vae_scale == 0.5
    assert model.schedule.alphas_cumprod[0].item() == pytest.approx(0.999)


def _without_vae(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if key.startswith("first_stage_model.")]:
        del tensors[key]


def _without_layer(tensors: dict[str, Tensor]) -> None:
    del tensors["model.diffusion_model.time_embed.0.weight"]


@pytest.mark.parametrize(
    ("damage", "says"), [(_without_vae, "no VAE"), (_without_layer, "time_embed.0.weight")]
)
def test_refusals(tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], says: str) -> None:
    tensors = tiny_tensors()
    damage(tensors)
    with pytest.raises(FileProblem, match=says):
        load_checkpoint(write(tmp_path / "x.safetensors", tensors))


def test_unused_tensors_are_noted(tmp_path: Path) -> None:
    tensors = tiny_tensors() | {"what.is.this": torch.zeros(1)}
    model = load_checkpoint(write(tmp_path / "x.safetensors", tensors))
    assert len(model.notes) == 1 and "what.is.this" in model.notes[0]


def test_a_dropped_model_is_freed(tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint(tmp_path / "x.safetensors"))
    weight = weakref.ref(model.unet.get_parameter("conv_in.weight"))
    del model
    gc.collect()
    assert weight() is None
