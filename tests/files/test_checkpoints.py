"""Checkpoints in all the forms they come in, and the refusal of what is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from extensions_lib.errors import FileProblem
from extensions_lib.files.checkpoints import checkpoint_structure, read_checkpoint
from extensions_lib.files.model_configs import config_beside, read_config
from extensions_lib.models import checkpoint_shapes
from tests.tiny import TINY, tiny_checkpoint, tiny_tensors

Tensors = dict[str, torch.Tensor]
CLIP = "cond_stage_model.transformer.text_model."
ATTENTION = "first_stage_model.decoder.mid.attn_1."


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return {key: tensor.half() for key, tensor in tiny_tensors("SD1").items()}


@pytest.mark.parametrize("family", list(TINY))
def test_reads_every_family(tmp_path: Path, family: str) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", family)
    assert checkpoint_structure(path) == TINY[family]
    found = read_checkpoint(path)
    assert found.structure == TINY[family]
    assert {k: tuple(t.shape) for k, t in found.tensors.items()} == checkpoint_shapes(TINY[family])
    for key, tensor in tiny_tensors(family).items():
        assert torch.equal(found.tensors[key], tensor.half())
    assert found.prediction is None and not found.zero_terminal_snr
    assert found.unused == () and found.config is None
    assert found.metadata == {"format": "pt"}


def test_marker_of_v_prediction(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", v_pred=True)
    assert read_checkpoint(path).prediction == "v_prediction"


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_pickled_checkpoint(tmp_path: Path, tensors: Tensors, suffix: str, wrapped: bool) -> None:
    path = tmp_path / f"tiny.{suffix}"
    torch.save({"state_dict": tensors, "global_step": 7} if wrapped else tensors, path)
    assert checkpoint_structure(path) == TINY["SD1"]
    found = read_checkpoint(path)
    assert found.tensors.keys() == tensors.keys() and found.unused == ()
    assert torch.equal(
        found.tensors[f"{CLIP}final_layer_norm.bias"], tensors[f"{CLIP}final_layer_norm.bias"]
    )


def test_leftovers_stay_in_the_file_and_strangers_are_listed(
    tmp_path: Path, tensors: Tensors
) -> None:
    more = {
        "model_ema.decay": torch.zeros(1),
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(2),
        "betas": torch.zeros(3),
        "sqrt_alphas_cumprod": torch.zeros(3),
        "first_stage_model.loss.logvar": torch.zeros(1),
        f"{CLIP}embeddings.position_ids": torch.zeros(1),
        "ztsnr": torch.zeros(0),
        "model.diffusion_model.surprise.weight": torch.zeros(1),
    }
    save_file(tensors | more, tmp_path / "x.safetensors")
    found = read_checkpoint(tmp_path / "x.safetensors")
    assert found.tensors.keys() == tensors.keys()
    assert found.unused == ("model.diffusion_model.surprise.weight",)
    assert found.zero_terminal_snr


def test_old_key_names(tmp_path: Path, tensors: Tensors) -> None:
    def old(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        key = key.replace(CLIP, "cond_stage_model.transformer.")
        if ".attn_1." in key and key.startswith("first_stage_model."):
            for new, was in (
                (".q.", ".query."), (".k.", ".to_k."), (".v.", ".value."),
                (".proj_out.", ".to_out.0."), (".norm.", ".group_norm."),
            ):  # fmt: skip
                key = key.replace(new, was)
            tensor = tensor.reshape(tensor.shape[:2])
        return key, tensor.contiguous()

    save_file(dict(old(*item) for item in tensors.items()), tmp_path / "old.safetensors")
    found = read_checkpoint(tmp_path / "old.safetensors")
    assert found.tensors.keys() == tensors.keys() and found.unused == ()
    for key, tensor in found.tensors.items():
        assert torch.equal(tensor.flatten(), tensors[key].flatten())


def test_without_vae(tmp_path: Path, tensors: Tensors) -> None:
    some = {k: t for k, t in tensors.items() if not k.startswith("first_stage_model.")}
    save_file(some, tmp_path / "x.safetensors")
    assert read_checkpoint(tmp_path / "x.safetensors").structure.vae is None


def _drop(some: Tensors) -> None:
    del some["model.diffusion_model.input_blocks.1.0.in_layers.0.weight"]
    del some[f"{CLIP}final_layer_norm.bias"]


def _misshape(some: Tensors) -> None:
    some["model.diffusion_model.out.2.bias"] = torch.zeros(5)


def _lora(some: Tensors) -> None:
    some.clear()
    some["lora_unet_conv_in.lora_up.weight"] = torch.zeros(2, 2)


def _vae(some: Tensors) -> None:
    for key in [key for key in some if not key.startswith("first_stage_model.")]:
        del some[key]


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_drop, r"2 of \d+ tensors are missing \(model\.diffusion_model\.input_blocks"),
        (_misshape, r"1 tensors do not fit.*out\.2\.bias should be \[4\], is \[5\]"),
        (_lora, "looks like a network"),
        (_vae, "looks like a VAE alone"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tensors: Tensors, damage: Callable[[Tensors], None], says: str, suffix: str
) -> None:
    path = tmp_path / f"bad.{suffix}"
    some = dict(tensors)
    damage(some)
    if suffix == "ckpt":
        torch.save(some, path)
    else:
        save_file(some, path)
    with pytest.raises(FileProblem, match=says) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, tensors: Tensors, share: float, suffix: str) -> None:
    path = tmp_path / f"part.{suffix}"
    if suffix == "ckpt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    with pytest.raises(FileProblem, match="part"):
        read_checkpoint(path)
    with pytest.raises(FileProblem, match="part"):
        checkpoint_structure(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such file"):
        read_checkpoint(tmp_path / "none.safetensors")


DEMO_YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.2
    unet_config:
      params: {num_heads: 4, num_head_channels: -1, model_channels: 32}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {version: clip}
"""


def test_yaml_beside_the_file(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors")
    (tmp_path / "tiny.yaml").write_text(DEMO_YAML)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"num_attention_heads": 2}')
    config = config_beside(path)
    assert config is not None
    assert config.prediction == "v_prediction"
    assert (config.heads, config.head_dim, config.text_heads) == (4, None, (2,))
    assert config.clip_folder == tmp_path / "clip"
    assert (config.vae_scale, config.linear_start) == (0.2, 0.00085)
    assert (config.linear_end, config.timesteps) == (0.012, 1000)
    found = read_checkpoint(path)
    assert found.structure.unet.heads == 4 and found.structure.texts[0].heads == 2
    assert found.prediction == "v_prediction"
    shutil.rmtree(tmp_path / "clip")
    assert checkpoint_structure(path).texts[0].heads == 1  # the family's own, without the folder


def test_yaml_says_epsilon_although_the_file_is_marked(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "tiny.safetensors", v_pred=True)
    (tmp_path / "tiny.yaml").write_text("model: {params: {parameterization: eps}}")
    assert read_checkpoint(path).prediction == "epsilon"


def test_sgm_yaml(tmp_path: Path) -> None:
    path = tmp_path / "xl.yaml"
    path.write_text(
        """
model:
  params:
    scale_factor: 0.13025
    denoiser_config:
      params:
        scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}
        discretization_config: {params: {linear_start: 0.001}}
    network_config: {params: {num_head_channels: 64}}
    conditioner_config:
      params:
        emb_models:
          - {target: sgm.modules.encoders.modules.FrozenCLIPEmbedder, params: {layer: hidden}}
          - {target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2, params: {version: x}}
          - {target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND}
"""
    )
    config = read_config(path)
    assert config.prediction == "v_prediction"
    assert (config.heads, config.head_dim, config.text_heads) == (None, 64, (None, None))
    assert (config.linear_start, config.vae_scale) == (0.001, 0.13025)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.system [echo]", "cannot be read"),
        ("- 1", "is not a model config"),
        ("model: 3", "is not a model config"),
        ("model: {params: {parameterization: x0}}", "expected one of eps, v"),
        ("model: {params: {unet_config: {params: {num_heads: many}}}}", "num_heads is 'many'"),
        ("model: {params: {scale_factor: -1}}", "scale_factor is -1"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(FileProblem, match=says) as caught:
        read_config(path)
    assert "bad.yaml" in str(caught.value)


def test_bad_clip_config(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(DEMO_YAML)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text("{")
    with pytest.raises(FileProblem, match=r"config\.json"):
        read_config(tmp_path / "x.yaml")
