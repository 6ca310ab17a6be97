"""Networks as ComfyUI's own trainer writes them, and what it means by a held rotation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.adapters import merged
from extensions_lib.files.networks import read_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header, read_tensors, write_safetensors
from extensions_lib.toolbox.convert import Converting, convert
from extensions_lib.toolbox.work import Output
from tests.tiny import TINY

CONV, INPUT, PROJ, LINEAR = (
    "unet.down_blocks.0.resnets.0.conv1", "unet.conv_in", "unet.down_blocks.1.attentions.0.proj_in",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
)  # fmt: skip
KEYS = {
    CONV: "diffusion_model.input_blocks.1.0.in_layers.2",
    INPUT: "diffusion_model.input_blocks.0.0",
    PROJ: "diffusion_model.input_blocks.4.1.proj_in",
    LINEAR: "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
}
SHAPES = {
    CONV: (320, 320, 3, 3), INPUT: (320, 4, 3, 3), PROJ: (640, 640, 1, 1), LINEAR: (640, 640)
}  # fmt: skip


def base(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def flat_loras(path: Path) -> dict[str, Tensor]:
    """A file whose factors are matrices for every layer; the change of each in float64."""
    draw = torch.Generator().manual_seed(0)
    tensors, changes = {}, {}
    for layer, key in KEYS.items():
        out, *rest = SHAPES[layer]
        up = torch.randn(out, 4, generator=draw)
        down = torch.randn(4, torch.Size(rest).numel(), generator=draw)
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
        changes[layer] = (up.double() @ down.double() / 4).view(SHAPES[layer])
    write_safetensors(path, tensors)
    return changes


def test_factors_without_a_kernel(tmp_path: Path) -> None:
    changes = flat_loras(tmp_path / "n.safetensors")
    network = read_network(tmp_path / "n.safetensors")
    assert (network.problems, network.unmatched) == ([], [])
    for layer, change in changes.items():
        weight = base(SHAPES[layer])
        found = merged(weight, [(network.adapters[layer], 0.5)]).double() - weight.double()
        assert (found - 0.5 * change).norm() <= 1e-5 * change.norm(), layer
    inpainting = torch.zeros(320, 9, 3, 3)
    found = network.adapters[INPUT].delta(inpainting)
    assert torch.equal(found[:, 4:], torch.zeros(320, 5, 3, 3))
    assert torch.allclose(found[:, :4].double(), changes[INPUT], rtol=1e-4, atol=1e-5)
    assert facts_of(read_any_header(network.path).shapes).title == "LoCon"


@pytest.mark.parametrize("naming", ["kohya", "peft", "comfyui"])
def test_they_are_written_with_one(tmp_path: Path, naming: str) -> None:
    changes = flat_loras(tmp_path / "n.safetensors")
    order = Output(str(tmp_path / "out.safetensors"))
    made = convert(tmp_path / "n.safetensors", Converting(naming=naming), order).path
    downs = [
        tensor.shape[2:]
        for key, tensor in read_tensors(made).items()
        if key.endswith(("lora_down.weight", "lora_A.weight"))
    ]
    assert sorted(map(tuple, downs))[-2:] == [(3, 3), (3, 3)]
    again = read_network(made)
    for layer, change in changes.items():
        found = again.adapters[layer].delta(torch.zeros(SHAPES[layer])).double()
        assert (found - change).norm() <= 1e-5 * change.norm(), layer


def test_a_matrix_that_has_no_such_kernel_is_said(tmp_path: Path) -> None:
    key = KEYS[CONV]
    tensors = {f"{key}.lora_up.weight": torch.ones(320, 4), f"{key}.lora_down.weight": torch.ones(4, 31)}  # fmt: skip  # noqa: E501
    write_safetensors(tmp_path / "n.safetensors", tensors)
    adapter = read_network(tmp_path / "n.safetensors").adapters[CONV]
    assert adapter.misfit(SHAPES[CONV]) == "expected [320, 320, 3, 3], found [320, 31]"


def rotated(weight: Tensor, blocks: Tensor, most: float) -> Tensor:
    """Each block of outputs turned, all blocks together held to the norm `most`, in float64."""
    skew = blocks.double() - blocks.double().mT
    if most and skew.norm() > most:
        skew = skew * most / skew.norm()
    one = torch.eye(skew.shape[-1], dtype=torch.float64)
    result = []
    for block, part in zip(skew, weight.double().view(*blocks.shape[:2], -1), strict=True):
        result.append(((one + block) @ torch.linalg.inv(one - block)).T @ part)
    return torch.cat(result).view(weight.shape)


@pytest.mark.parametrize("alpha", [0.0, 1.0, None])
def test_a_rotation_is_held_to_alpha_itself(tmp_path: Path, alpha: float | None) -> None:
    """Not to alpha times the outputs, as kohya's; so also when it is converted."""
    blocks = 0.2 * torch.randn(32, 10, 10, generator=torch.Generator().manual_seed(0))
    tensors = {f"{KEYS[CONV]}.oft_blocks": blocks}
    if alpha is not None:
        tensors[f"{KEYS[CONV]}.alpha"] = torch.tensor(alpha)
    write_safetensors(tmp_path / "comfy.safetensors", tensors)
    weight = base(SHAPES[CONV])
    expected = rotated(weight, blocks, alpha or 0.0)
    order = Output(str(tmp_path / "kohya.safetensors"))
    kohya = convert(tmp_path / "comfy.safetensors", Converting(naming="kohya"), order).path
    order = Output(str(tmp_path / "again.safetensors"))
    again = convert(kohya, Converting(naming="comfyui"), order).path
    for path in (tmp_path / "comfy.safetensors", kohya, again):
        found = merged(weight, [(read_network(path).adapters[CONV], 1.0)])
        change = (expected - weight.double()).norm()
        assert (found.double() - expected).norm() <= 1e-5 * change, path.stem
    written = {key.rpartition(".")[2]: tensor for key, tensor in read_tensors(again).items()}
    assert ("alpha" in written) == (alpha is not None)
    if alpha is not None:
        assert float(written["alpha"]) == pytest.approx(alpha)


def test_the_loaded_model_s_own_convolutions(tmp_path: Path) -> None:
    key = KEYS[CONV]
    tensors = {f"{key}.lora_up.weight": torch.ones(32, 2), f"{key}.lora_down.weight": torch.ones(2, 288)}  # fmt: skip  # noqa: E501
    write_safetensors(tmp_path / "n.safetensors", tensors)
    network = read_network(tmp_path / "n.safetensors", structure=TINY["SD1"])
    assert network.adapters[CONV].shape == (32, 32, 3, 3)
